"""A job that kills its workers is given up after the third, which it had alone; its neighbours finish."""

import asyncio
from collections.abc import Awaitable, Callable

import orjson
import redis

from shared.messages import Claimed
from tests.conftest import wait_until
from tests.e2e.wire import chat, stream
from tests.fault.streams import Progress, check, metric
from tests.fault.wiretap import Wiretap
from tests.processes import Process, Stack

FLAGS = ("--model-names", "echo", "--echo-interval-ms", "10")
POISON = "a little arsenic"


async def keep_alive(start: Callable[[], Awaitable[Process]], over: asyncio.Event, crashes: list[Process]) -> None:
    """As a supervisor does."""
    while not over.is_set():
        worker = await start()
        await wait_until(lambda: worker.ended or over.is_set(), description="it dies", timeout=60)  # noqa: B023
        if worker.ended:
            crashes.append(worker)


def assert_only_the_poison_is_buried(bus: redis.Redis, tap: Wiretap) -> None:
    ((_, buried),) = bus.xrange("tokenbus:dead:{echo}")
    job = orjson.loads(buried["job"])
    assert "arsenic" in str(job["payload"])
    assert job["crashes"] == 2
    assert buried["reason"] == "worker_lost"
    *_, last = [event for event in tap.events if isinstance(event, Claimed) and event.job == job["id"]]
    assert last.attempt == job["attempt"]
    assert tap.company_of(last) == set()


async def poison(
    stack: Stack, bus: redis.Redis, tap: Wiretap, start: Callable[[], Awaitable[Process]]
) -> tuple[int, str, str]:
    """Among three neighbours: status, text and error code of what it came to, after all have been looked at."""
    over, progress = asyncio.Event(), Progress()
    crashes: list[Process] = []
    await stack.gateway()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_alive(start, over, crashes), name="supervisor")
        await stack.models("echo")
        neighbours = [tasks.create_task(check(stack, number, 80, progress)) for number in range(3)]
        await progress.reached(12, streams=3)
        streamed = await stream(stack, chat(POISON, max_tokens=50))
        await asyncio.wait(neighbours)
        over.set()
    assert len(crashes) == 3
    assert await metric(stack, "deadletter_total") == 1
    assert_only_the_poison_is_buried(bus, tap)
    return streamed.status, streamed.text(), streamed.error["code"] if streamed.error else ""


async def test_poison_that_kills_at_once_is_an_http_error(stack: Stack, bus: redis.Redis, tap: Wiretap) -> None:
    status, text, _ = await poison(stack, bus, tap, lambda: stack.worker(*FLAGS, "--echo-crash-word", "arsenic"))
    assert (status, text) == (500, "")


async def test_poison_that_kills_in_mid_reply_is_an_error_event(stack: Stack, bus: redis.Redis, tap: Wiretap) -> None:
    def start() -> Awaitable[Process]:
        return stack.worker(*FLAGS, module="tests.fault.faulty_worker", FAULT="crash", AFTER="10")

    status, text, code = await poison(stack, bus, tap, start)
    assert (status, text) == (200, " ".join((POISON.split() * 4)[:10]))
    assert code == "worker_lost"
