"""Tokenbus's own processes. What only imports what others have imported is forked off them (`forked.py`)."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests import forked
from tests.conftest import free_port, wait_until
from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[1]
VLLM = ROOT / ".venv" / "vllm" / "bin" / "python"  # of an environment of its own


class Process:
    """One `python -m MODULE FLAGS...` with its log in a file."""

    def __init__(self, log: Path, module: str, *flags: str, python: str = sys.executable, **environment: str) -> None:
        self.log = log
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TOKENBUS_")} | environment
        self.popen: subprocess.Popen[bytes] | Forked
        if forked.IS_HERE and python == sys.executable and not any(key.startswith("PYTHON") for key in environment):
            self.popen = Forked(module, flags, ROOT, kept, log)
            return
        with log.open("ab") as sink:
            self.popen = subprocess.Popen([python, "-m", module, *flags], cwd=ROOT, env=kept, stdout=sink, stderr=sink)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9."""
        self.popen.kill()
        self.popen.wait()

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def terminate(self, timeout: float = 15) -> int:
        """SIGTERM; returns the exit code."""
        self.popen.terminate()
        return self.popen.wait(timeout)

    def leave(self, within: float) -> int:
        """SIGTERM; returns the exit code. Fails after so many s, without those in which it waited for a processor that
        other processes had."""
        began, before, waited = time.monotonic(), _waited_s(self.pid), 0.0
        self.popen.terminate()
        while self.popen.poll() is None:
            waited = max(waited, _waited_s(self.pid) - before)  # threads that end take theirs along
            assert time.monotonic() - began - waited < within, self.said()
            time.sleep(0.02)
        assert self.popen.returncode is not None
        return self.popen.returncode

    def wait(self, timeout: float = 30) -> int:
        return self.popen.wait(timeout)

    @property
    def ended(self) -> bool:
        return self.popen.poll() is not None


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _waited_s(pid: int) -> float:
    """The longest that one of its threads was ready to run and did not; 0 where the system does not tell."""
    waited = [0.0]
    for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it has ended
            waited.append(int(stat.read_text().split()[1]) / 1e9)
    return max(waited)


class Stack:
    """A gateway and workers over one Redis; everything that was started is killed at the end."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.redis_url = redis_url
        self._folder = folder
        self._processes: list[Process] = []
        self.url = ""
        self.namespace = "tokenbus"

    def spawn(self, module: str, *flags: str, python: str = sys.executable, **environment: str) -> Process:
        log = self._folder / f"{module}-{len(self._processes)}.log"
        process = Process(log, module, *flags, python=python, REDIS_URL=self.redis_url, **environment)
        self._processes.append(process)
        return process

    async def gateway(self, *flags: str, **environment: str) -> Process:
        """Its address is `self.url` from then on."""
        port = free_port()
        process = self.spawn("gateway", "--port", str(port), *flags, **environment)
        self.url = f"http://127.0.0.1:{port}"
        await wait_until(lambda: self._answers("/readyz"), description=f"gateway ready; {process.log}")
        return process

    async def worker(self, *flags: str, module: str = "worker", **environment: str) -> Process:
        """Ready to claim when this returns. Unless the flags say otherwise, the echo engine, or transformers
        for a model."""
        if "--engine" not in flags:
            flags = ("--engine", "transformers" if "--model-path" in flags else "echo", *flags)
        process = self.spawn(module, *flags, **environment)

        def ready() -> bool:
            has_served = " serves " in process.said()  # poison may have ended it since
            assert has_served or not process.ended, process.said()
            return has_served

        await wait_until(ready, description=f"worker ready; {process.log}", timeout=180)
        return process

    async def models(self, *names: str, timeout: float = 10, key: str = "none") -> None:
        """Waits until exactly these names are listed."""

        async def listed() -> bool:
            async with httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http:
                data = (await http.get(f"{self.url}/v1/models")).json().get("data", [])
            return {row["id"] for row in data} == set(names)

        await wait_until(listed, description=f"models {names}", timeout=timeout)

    async def _answers(self, path: str) -> bool:
        try:
            async with httpx2.AsyncClient() as http:
                return (await http.get(self.url + path)).status_code == 200
        except httpx2.TransportError:
            return False

    async def registry(self) -> list[dict[str, Any]]:
        """`registry.table.rows`, as `python -m registry --json` prints them."""
        from registry.table import rows
        from shared.connection import connect
        from shared.keys import Keys

        redis = connect(self.redis_url)
        try:
            return await rows(redis, Keys(self.namespace))
        finally:
            await redis.aclose()

    def close(self) -> None:
        for process in self._processes:
            if not process.ended:
                process.popen.send_signal(signal.SIGCONT)
                process.kill()
