"""Models that are loaded on demand: by real workers of the echo engine, and a loader that the test looks into."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli import loader as loaders
from cli.loader import Loader, OnDemand
from cli.memory import Memory
from cli.stack import Model, Stack
from cli.supervisor import Supervisor
from shared.connection import connect
from shared.keys import Keys
from tests.conftest import wait_until

Start = Callable[..., Any]


class Running:
    """A loader and what it loads, of the given needs in bytes."""

    def __init__(self, redis: Any, url: str, logs: Path, id: str, needs: dict[str, int], budget: int | None) -> None:
        self.redis, self.keys, self.supervisor = redis, Keys(), Supervisor(lambda text: None)
        stack = Stack(redis_url=url, namespace="tokenbus", log_level="info", logs=logs, drain_timeout=0)
        self.models = {
            name: OnDemand(
                model=(model := Model(name, flags=("--engine", "echo"))),
                service=stack.worker(model, id),
                keep_alive=float("inf"),
                need=need,
                takes=1.0,
            )
            for name, need in needs.items()
        }
        self.loader = Loader(list(self.models.values()), Memory(budget), self.supervisor, redis, self.keys, id)

    async def ask(self, *names: str) -> None:
        """As a gateway tells it."""
        await self.redis.zadd(self.keys.demand(), dict.fromkeys(names, time.time()))
        await self.redis.expire(self.keys.demand(), 60)

    async def until(self, name: str, state: str, timeout: float = 20) -> None:
        """Somebody waits for it meanwhile."""

        async def there() -> bool:
            await self.ask(name)
            return self.models[name].state == state

        await wait_until(there, description=f"{name} is {state}", timeout=timeout, every=0.1)


@pytest.fixture
async def start(valkey_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as ending:
        redis = await ending.enter_async_context(aclosing(connect(valkey_url)))

        async def start(needs: dict[str, int], budget: int | None = None, id: str = "loader") -> Running:
            running = Running(redis, valkey_url, tmp_path, id, needs, budget)
            await ending.enter_async_context(running.supervisor)
            await ending.enter_async_context(running.loader.telling({}))
            task = asyncio.create_task(running.supervisor.keep_running(running.loader.run()))

            async def end() -> None:
                task.cancel()
                await asyncio.wait({task})

            ending.push_async_callback(end)
            await asyncio.sleep(0.3)  # what was asked for before says nothing
            return running

        yield start


async def test_one_that_is_asked_for_all_the_time_leaves_for_who_has_waited(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "PATIENT_S", 1.0)
    running = await start({"a": 1, "b": 1}, budget=1)
    await running.until("b", "loaded")

    async def ask() -> None:
        while True:
            await running.ask("b")
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask())
    await running.until("a", "loaded")
    asking.cancel()


async def test_a_worker_that_hangs_is_started_again_and_is_in_nobody_s_way(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "STILL_S", 8.0)
    monkeypatch.setattr(loaders, "LOOK_AT_LOAD_S", 0.2)
    running = await start({"a": 1, "b": 1})  # of memory that is measured: one is loaded at a time
    await running.until("a", "loaded")
    child = running.models["a"].child
    before = child.pid
    os.kill(before, signal.SIGSTOP)
    await running.until("a", "loading")
    await running.until("b", "loaded", timeout=7)
    assert child.pid == before
    await running.until("a", "loaded", timeout=30)
    assert child.pid != before


async def test_a_first_load_that_hangs_has_failed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "STILL_S", 1.0)
    monkeypatch.setattr(loaders, "LOOK_AT_LOAD_S", 0.2)
    running = await start({"a": 1})
    running.models["a"].service = replace(
        running.models["a"].service, command=(sys.executable, "-c", "import time; time.sleep(60)")
    )
    await running.until("a", "failed")
    assert "it has computed nothing for 1 s" in running.models["a"].error


async def test_a_load_that_is_killed_is_begun_once_more(start: Start) -> None:
    running = await start({"a": 1})
    await running.until("a", "loading")
    os.kill(running.models["a"].child.pid, signal.SIGKILL)
    await wait_until(lambda: running.models["a"].was_killed, description="it is noticed")
    await running.until("a", "loading")
    os.kill(running.models["a"].child.pid, signal.SIGKILL)
    await running.until("a", "failed")
    assert "was ended by SIGKILL" in running.models["a"].error


@pytest.mark.asyncio(loop_factories=["asyncio"])  # as `tokenbus up` runs it; uvloop cuts a text off there
async def test_what_no_process_can_be_told_fails(start: Start) -> None:
    running = await start({"a": 1, "b": 1})
    running.models["a"].service = replace(running.models["a"].service, command=(sys.executable, "a\0"))
    await running.until("a", "failed")
    await running.until("b", "loaded")
    assert "embedded null byte" in running.models["a"].error


async def test_of_two_loaders_one_loads(start: Start) -> None:
    pair = [await start({"a": 1}, id=id) for id in ("one", "other")]
    await asyncio.gather(*(running.ask("a") for running in pair))
    await wait_until(lambda: any(one.models["a"].state == "loaded" for one in pair), description="it is loaded")
    for _ in range(10):
        await pair[0].ask("a")
        await asyncio.sleep(0.2)
    assert sorted(one.models["a"].child is None for one in pair) == [False, True]


async def test_what_a_loader_of_another_release_says_is_in_nobody_s_way(start: Start) -> None:
    running = await start({"a": 1})
    redis, keys = running.redis, running.keys
    await redis.zadd(keys.loaders(), {"older": time.time(), b"\xff": time.time()})
    await redis.expire(keys.loaders(), 60)
    await redis.set(keys.loader("older"), b'{"models": 3}', ex=60)
    await running.until("a", "loaded")


async def test_what_is_larger_than_all_is_loaded_when_nothing_else_takes_memory(start: Start) -> None:
    """Its size is a guess."""
    running = await start({"a": 1, "free": 0, "huge": 2**60})
    await running.until("free", "loaded")
    await running.until("a", "loaded")
    await running.until("huge", "loaded")
    assert [running.models[name].state for name in ("a", "free")] == ["unloaded", "loaded"]
