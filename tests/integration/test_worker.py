"""The life of a worker beyond one session."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from shared.errors import EngineFailed
from shared.keys import Keys
from shared.messages import Delta, Finished
from shared.queue import JobQueue
from tests.conftest import wait_until
from tests.integration.bus import listening, make_job
from worker.engines.base import EngineInfo
from worker.engines.echo_impl import EchoStepper, create
from worker.engines.options import EngineOptions
from worker.room import House, Room
from worker.service import Worker
from worker.session import Session


def make_worker(client: Any, url: str, keys: Keys, engine: Any, hang_timeout: float = 30) -> Worker:
    @asynccontextmanager
    async def make_session(info: EngineInfo, names: list[str], adapter: int, room: Room) -> AsyncIterator[Session]:
        session = partial(Session, redis=client, redis_url=url, keys=keys, engine=engine, engine_info=info)
        yield session(names=names, adapter=adapter, room=room, hang_timeout=hang_timeout, drain_timeout=0)

    return Worker(client, url, engine, make_session, ["echo"], hang_timeout, House())


async def run(worker: Worker) -> None:
    await worker.load()
    await worker.serve()


async def live_ids(client: Any, keys: Keys) -> set[bytes]:
    return {key async for key in client.scan_iter(match=keys.worker("echo", "*"))}


async def test_a_worker_that_lost_its_lease_comes_back_under_a_new_id(client: Any, redis_url: str, keys: Keys) -> None:
    worker = make_worker(client, redis_url, keys, create(EngineOptions(echo_interval_ms=5)))
    task = asyncio.create_task(run(worker))
    (first,) = await wait_until(lambda: live_ids(client, keys), description="it is registered")
    await client.delete(first)
    (second,) = await wait_until(lambda: live_ids(client, keys), description="it is back")
    assert second != first
    async with listening(client, keys) as heard:
        await JobQueue(client, keys).enqueue([make_job()], 10, "pull")
        await wait_until(lambda: heard.of("r-0", Finished), description="it works")
    worker.stop()
    await asyncio.wait_for(task, 5)


async def test_an_engine_that_hangs_costs_the_lease_and_then_the_process(
    client: Any, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event loop lives on, and must neither keep the lease nor go on claiming."""
    released = asyncio.Event()
    loop = asyncio.get_running_loop()
    step = EchoStepper.step

    def hang_at_the_third(self: EchoStepper) -> Any:
        if self._running and self._running[0].made == 2:
            asyncio.run_coroutine_threadsafe(released.wait(), loop).result()
        return step(self)

    monkeypatch.setattr(EchoStepper, "step", hang_at_the_third)
    worker = make_worker(client, redis_url, keys, create(EngineOptions(echo_interval_ms=5)), hang_timeout=0.5)
    task = asyncio.create_task(run(worker))
    await wait_until(lambda: live_ids(client, keys), description="it is registered")
    async with listening(client, keys) as heard:
        await JobQueue(client, keys).enqueue([make_job(max_tokens=9)], 10, "pull")
        await wait_until(lambda: heard.of("r-0", Delta), description="it starts")

        async def gone() -> bool:
            return not await live_ids(client, keys)

        await wait_until(gone, description="the lease ran out")
        asyncio.get_running_loop().call_later(3.5, released.set)  # so that the thread can end
        with pytest.raises(EngineFailed, match="hangs"):
            await asyncio.wait_for(task, 10)
