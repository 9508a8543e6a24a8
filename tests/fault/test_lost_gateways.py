"""A gateway is killed: nobody computes for it any longer than a lease, and nothing of it stays in Redis."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import redis

from shared.keys import GROUP, Keys
from tests.conftest import wait_until
from tests.e2e.wire import Connection, chat
from tests.fault.streams import Progress, check, redelivered, rows, used
from tests.fault.wiretap import Wiretap
from tests.processes import Stack

KEYS = Keys()
FLAGS = ("--model-names", "echo", "--echo-interval-ms", "20")
LARGE = "w" * 70_000  # its payload lies aside
TOKENS = 5000  # more than any of these tests waits for


def left_in(bus: redis.Redis) -> dict[str, list[str]]:
    """Everything that a job or a worker may leave behind. Looked at again if an inbox goes meanwhile."""
    try:
        return look(bus)
    except redis.ResponseError:
        return left_in(bus)


def look(bus: redis.Redis) -> dict[str, list[str]]:
    streams = [*KEYS.job_streams("echo"), *sorted(bus.scan_iter("tokenbus:inbox:*"))]
    return {
        "entries": [id for stream in streams for id, _ in bus.xrange(stream)],
        "pending": [row for stream in streams for row in bus.xpending_range(stream, GROUP, "-", "+", 100)],
        "consumers": sorted({row["name"] for stream in streams for row in bus.xinfo_consumers(stream, GROUP)}),
        "inboxes": sorted(bus.scan_iter("tokenbus:inbox:*")),
        "workers": bus.zrange(KEYS.workers("echo"), 0, -1),
        "payloads": list(bus.scan_iter("tokenbus:payload:*")),
    }


async def until_as_new(bus: redis.Redis, workers: list[str]) -> None:
    """What a system has in which these workers have just come. Two sweeps and a lease, and again as much."""

    def seen() -> dict[str, list[str]]:
        left = left_in(bus)  # a living worker may have claimed from a stream or not yet
        return {**left, "consumers": [name for name in left["consumers"] if name not in workers]}

    inboxes = [KEYS.inbox("echo", worker) for worker in workers]
    expected = {"entries": [], "pending": [], "consumers": [], "inboxes": inboxes, "workers": workers, "payloads": []}
    with contextlib.suppress(AssertionError):
        await wait_until(lambda: seen() == expected, description="nothing is left", timeout=13)
    assert seen() == expected


Send = Callable[..., Awaitable[None]]


@pytest.fixture
async def send() -> AsyncIterator[Send]:
    """`await send(stack, count)`: that many streams that nobody reads, until the test ends."""
    connections: list[Connection] = []

    async def send(stack: Stack, count: int, text: str = "a b") -> None:
        for _ in range(count):
            connections.append(await Connection.open(stack))
            await connections[-1].send(chat(text, max_tokens=TOKENS, stream=True))

    yield send
    for connection in connections:
        connection.reset()


@pytest.mark.parametrize("seed", [1])
async def test_its_slots_are_free_within_a_lease_and_the_other_gateways_streams_go_on(
    stack: Stack, second: Stack, bus: redis.Redis, send: Send, seed: int
) -> None:
    await one_of_two_dies(stack, second, bus, send, "pull", seed)


@pytest.mark.parametrize("seed", [2])
async def test_its_slots_are_free_also_where_somebody_watches_its_channel(
    stack: Stack, second: Stack, bus: redis.Redis, send: Send, tap: Wiretap, seed: int
) -> None:
    """A PUBLISH is then answered by a count that says nothing of the gateway."""
    await one_of_two_dies(stack, second, bus, send, "shortest_queue", seed)
    assert tap.events


async def at_most(stack: Stack, slots: int) -> bool:
    return sum(row["slots_used"] for row in await stack.registry()) <= slots


async def one_of_two_dies(stack: Stack, second: Stack, bus: redis.Redis, send: Send, method: str, seed: int) -> None:
    doomed = await stack.gateway("--dispatch-method", method)
    await second.gateway("--dispatch-method", method)
    await stack.worker(*FLAGS, "--limit-worker-concurrency", "4")
    (worker,) = await rows(stack, 1)
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            tasks.create_task(check(second, number, 200, progress))
        await progress.reached(2, streams=2)
        await send(stack, 2)
        await wait_until(lambda: used(stack, 4), description="all slots are taken")
        await send(stack, 2)
        await send(stack, 1, LARGE)
        await wait_until(lambda: len(left_in(bus)["entries"]) == 7, description="three wait")
        await progress.reached(progress.chunks + random.Random(seed).randrange(5, 60))
        doomed.kill()
        killed_at = time.monotonic()
        await wait_until(lambda: at_most(stack, 2), description="its slots are free", timeout=6)
        print(f"free after {time.monotonic() - killed_at:.2f} s")
    assert await redelivered(second) == 0
    await until_as_new(bus, [worker["worker"]])


async def test_what_waited_for_the_dead_goes_too_where_no_worker_lives(
    stack: Stack, second: Stack, bus: redis.Redis, send: Send
) -> None:
    """In the model's stream, in an inbox, delivered or not."""
    # All are up before the worker stops: its lease runs from then on, and who sees it run out uses no inbox.
    also_doomed = await stack.gateway("--dispatch-method", "shortest_queue")
    choosing = stack.url
    doomed = await stack.gateway()
    await second.gateway()
    worker = await stack.worker(*FLAGS, "--limit-worker-concurrency", "8")
    await rows(stack, 1)
    await send(stack, 2)
    await wait_until(lambda: used(stack, 2), description="two run")
    worker.signal(signal.SIGSTOP)
    await send(stack, 3)
    await send(stack, 1, LARGE)
    stack.url = choosing
    await send(stack, 2)
    await wait_until(lambda: len(left_in(bus)["entries"]) == 8, description="six wait")
    assert sum(bus.xlen(inbox) for inbox in left_in(bus)["inboxes"]) == 2
    for process in (worker, doomed, also_doomed):
        process.kill()
    await until_as_new(bus, [])


async def test_what_waited_for_it_goes_too_while_others_keep_every_slot(
    stack: Stack, second: Stack, bus: redis.Redis, send: Send
) -> None:
    """A queue that nobody reads for minutes must not show jobs that nobody waits for."""
    doomed = await stack.gateway()
    await second.gateway()
    await stack.worker(*FLAGS, "--limit-worker-concurrency", "1")
    await rows(stack, 1)
    await send(second, 1)
    await wait_until(lambda: used(stack, 1), description="the only slot is taken")
    await send(stack, 3)
    await wait_until(lambda: len(left_in(bus)["entries"]) == 4, description="three wait")
    doomed.kill()
    await wait_until(lambda: len(left_in(bus)["entries"]) == 1, description="they are gone", timeout=12)
