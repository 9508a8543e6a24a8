"""The stacks of the e2e tests, to be broken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RedisServer
from tests.e2e.conftest import bus, own_redis, own_stack, server_in, stack
from tests.fault.wiretap import Wiretap
from tests.processes import Stack

__all__ = ["bus", "own_redis", "own_stack", "stack"]


@pytest.fixture
def second(stack: Stack, tmp_path: Path) -> Iterator[Stack]:
    """For a second gateway on the same bus."""
    folder = tmp_path / "second"
    folder.mkdir()
    second = Stack(stack.redis_url, folder)
    yield second
    second.close()


@pytest.fixture
def tap(stack: Stack) -> Iterator[Wiretap]:
    """Hears what the workers of `stack` say."""
    tap = Wiretap(stack.redis_url)
    yield tap
    tap.close()


@pytest.fixture
def lasting_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with an append-only file, that the test may kill and start again."""
    folder = tmp_path / "lasting"
    folder.mkdir()
    server = server_in(folder, "--appendonly", "yes")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def lasting_stack(lasting_redis: RedisServer, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(lasting_redis.url, tmp_path)
    yield stack
    stack.close()
