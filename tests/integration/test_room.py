"""Sessions that share an engine: their slots, their turns, and a suspect that is alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from registry.directory import take_snapshot
from shared.keys import Keys
from shared.messages import Delta, Finished
from shared.queue import JobQueue
from tests.conftest import wait_until
from tests.integration.bus import listening, make_job
from worker.__main__ import make_worker
from worker.room import House
from worker.service import together
from worker.settings import WorkerSettings


@asynccontextmanager
async def serving(
    client: Any, url: str, keys: Keys, *models: str, slots: int, interval_ms: float
) -> AsyncIterator[None]:
    """Each model with an engine of its own and the adapter `x`, in one process."""
    house, workers = House(), []
    for model in models:
        flags = f"--engine echo --model-names {model} --lora-modules x=/none --redis-url {url}"
        pace = f"--limit-worker-concurrency {slots} --echo-interval-ms {interval_ms}"
        settings = WorkerSettings.read("worker", f"{flags} {pace} --namespace {keys.namespace}".split())
        workers.append(make_worker(settings, client, house))
    for worker in workers:
        await worker.load()
    running = asyncio.create_task(together([worker.serve() for worker in workers], lambda: None))

    async def registered() -> bool:
        return len((await take_snapshot(client, keys)).workers) == 2 * len(models)

    try:
        await wait_until(registered, description="all are registered")
        yield
    finally:
        for worker in workers:
            worker.stop()
        await asyncio.wait({running}, timeout=15)
        assert running.done()


async def enqueue(client: Any, keys: Keys, *jobs: Any) -> None:
    for job in jobs:
        await JobQueue(client, keys).enqueue([job], 1000, "pull")


async def test_they_take_turns(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, serving(client, redis_url, keys, "m", slots=1, interval_ms=2):
        jobs = [make_job(f"{model}-{n}", model=model, max_tokens=6) for model in ("m", "m:x") for n in range(20)]
        await enqueue(client, keys, *jobs)

        def ended() -> list[str]:
            return [event.job.rpartition("-")[0] for event in heard.events if isinstance(event, Finished)]

        await wait_until(lambda: len(ended()) == len(jobs), description="all are answered")
        first = ended()[: len(jobs) // 2]
        assert 6 <= first.count("m") <= 14, first


@pytest.mark.parametrize("other", ["m", "n"], ids=["of the same engine", "of another engine"])
async def test_a_suspect_is_alone_in_the_process(client: Any, redis_url: str, keys: Keys, other: str) -> None:
    models = ("m",) if other == "m" else ("m", "n")
    async with listening(client, keys) as heard, serving(client, redis_url, keys, *models, slots=4, interval_ms=20):
        for round in range(3):
            suspect, later = f"s{round}-0", f"b{round}-0"
            await enqueue(client, keys, make_job(suspect, model="m:x", max_tokens=30, crashes=2))
            await wait_until(lambda: heard.of(suspect, Delta), description="it runs")  # noqa: B023
            await enqueue(client, keys, make_job(later, model=other, max_tokens=3))
            await wait_until(lambda: heard.of(later, Finished), description="the other is answered")  # noqa: B023
            order = [event.job for event in heard.events if isinstance(event, Finished)]
            assert order.index(suspect) < order.index(later)
            began, ended = heard.of(later, Delta)[0], heard.of(suspect, Finished)[0]
            assert heard.events.index(ended) < heard.events.index(began)


async def test_of_several_the_others_are_waited_for_when_one_fails() -> None:
    said = []
    stopping = asyncio.Event()

    async def drains() -> None:
        await stopping.wait()
        await asyncio.sleep(0.05)
        said.append("drained")

    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await together([drains(), fails()], stopping.set)
    assert said == ["drained"]
