"""Small things that the tests of the bus share: jobs, a listening gateway, a session over the echo engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.connection import Redis
from shared.keys import Keys
from shared.messages import Event, Job, SamplingParams, WorkerInfo, decode_frame
from worker.engines.echo_impl import create
from worker.engines.options import EngineOptions
from worker.room import House, Room
from worker.session import Session


def make_job(id: str = "r-0", text: str = "a b c", *, max_tokens: int = 3, **fields: Any) -> Job:
    values: dict[str, Any] = {
        "id": id,
        "request": id.rpartition("-")[0] or id,
        "model": "echo",
        "kind": "chat",
        "payload": {"messages": [{"role": "user", "content": text}]},
        "sampling": SamplingParams(seed=1, max_tokens=max_tokens),
        "gateway": "gw",
        "deadline": int((time.time() + 60) * 1000),
    }
    return Job(**(values | fields))


def make_info(id: str = "host-w1", **fields: Any) -> WorkerInfo:
    values: dict[str, Any] = {
        "id": id,
        "model": "echo",
        "names": ["echo"],
        "fingerprint": "f00d",
        "engine": "echo",
        "max_model_len": 100,
        "resumable": True,
        "state": "ready",
        "slots": 4,
        "running": 0,
        "tokens_per_s": 0.0,
        "version": "0",
        "started": 0.0,
    }
    return WorkerInfo(**(values | fields))


@asynccontextmanager
async def subscribed(client: Redis, channel: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """What is published on `channel`, from the moment the block is entered."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        yield (message["data"] async for message in pubsub.listen() if message["type"] == "message")


class Listener:
    """A gateway as far as a worker sees one: a lease, and ears."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, job: str, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if event.job == job and isinstance(event, kind)]

    def text(self, job: str) -> str:
        return "".join(getattr(event, "text", "") for event in self.events if event.job == job)


@asynccontextmanager
async def listening(client: Redis, keys: Keys, gateway: str = "gw") -> AsyncIterator[Listener]:
    listener = Listener()
    await client.set(keys.gateway(gateway), "1", px=60_000)
    async with subscribed(client, keys.events(gateway)) as messages:

        async def listen() -> None:
            async for message in messages:
                listener.events += decode_frame(message).events

        task = asyncio.create_task(listen(), name="listener")
        try:
            yield listener
        finally:
            task.cancel()


@asynccontextmanager
async def echo_session(
    client: Redis, url: str, keys: Keys, *, slots: int = 4, interval_ms: float = 0, drain_timeout: float = 0
) -> AsyncIterator[tuple[Session, "asyncio.Task[Any]"]]:
    """A session that is ready to claim, with the task that runs it."""
    engine = create(EngineOptions(slots=slots, echo_interval_ms=interval_ms))
    session = Session(
        redis=client,
        redis_url=url,
        keys=keys,
        engine=engine,
        engine_info=engine.load(),
        names=["echo"],
        adapter=0,
        room=Room(slots, House()),
        hang_timeout=30,
        drain_timeout=drain_timeout,
    )
    engine.start(session.deliver)
    task = asyncio.create_task(session.run(), name="session")
    try:
        while not await client.exists(keys.worker("echo", session.id)):
            assert not task.done(), task.exception()
            await asyncio.sleep(0.01)
        yield session, task
    finally:
        from worker.session import Leaving

        session.leave(Leaving.DRAIN)
        await asyncio.wait({task}, timeout=10)
        await engine.stop()
