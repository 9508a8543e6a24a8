"""A worker is killed, sleeps, breaks, falls silent or is cut off: its streams go on elsewhere, exact."""

import asyncio
import random
import signal
import time
from collections.abc import Iterator

import pytest
import redis

from tests.conftest import wait_until
from tests.fault.streams import Progress, check, metric, redelivered, rows, shared_by, status, used
from tests.fault.wiretap import Wiretap
from tests.link import Link
from tests.processes import Stack

ECHO = ("--model-names", "echo", "--echo-interval-ms", "20", "--limit-worker-concurrency")
FLAGS = (*ECHO, "8")
HALF = (*ECHO, "4")  # of two workers each gets four of eight streams, however late it claims


@pytest.fixture
def link(stack: Stack) -> Iterator[Link]:
    link = Link(stack.redis_url)
    yield link
    link.close()


@pytest.mark.parametrize(("method", "seed"), [("pull", 1), ("shortest_queue", 2), ("lottery", 3)])
async def test_a_killed_workers_streams_go_on(stack: Stack, method: str, seed: int) -> None:
    await stack.gateway("--dispatch-method", method)
    first = await stack.worker(*FLAGS)
    await stack.worker(*FLAGS)
    await rows(stack, 2)
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(check(stack, number, 120, progress))
        await shared_by(stack, 2, 8)
        await progress.reached(random.Random(seed).randrange(100, 500))
        first.kill()
        killed_at = time.monotonic()
        # A lease and a look at it are 3 s; twice that, since the machine may be busy.
        await wait_until(lambda: redelivered(stack), description="it is noticed", timeout=6)
        print(f"noticed after {time.monotonic() - killed_at:.2f} s")
    assert await redelivered(stack) == await redelivered(stack, reason="worker_lost") > 0
    assert len(await rows(stack, 1)) == 1
    await check(stack, 9, 3)


@pytest.mark.parametrize("seed", [4])
async def test_a_stream_without_a_worker_waits_for_the_next_one_and_goes_on(stack: Stack, seed: int) -> None:
    await stack.gateway()
    worker = await stack.worker(*FLAGS)
    await stack.models("echo")
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(check(stack, 1, 120, progress))
        await progress.reached(random.Random(seed).randrange(10, 100))
        worker.kill()
        await stack.worker(*FLAGS)


def close_ears(bus: redis.Redis) -> None:
    """Of everybody but the wiretap, which subscribes to a pattern."""
    for row in bus.client_list(_type="pubsub"):
        if row["sub"] != "0":
            bus.client_kill_filter(_id=row["id"])


@pytest.mark.parametrize("seed", [5])
async def test_a_worker_that_slept_longer_than_its_lease_is_fenced_and_comes_back_under_a_new_id(
    stack: Stack, bus: redis.Redis, tap: Wiretap, seed: int
) -> None:
    await stack.gateway()
    sleeper = await stack.worker(*FLAGS)
    (before,) = await rows(stack, 1)
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            tasks.create_task(check(stack, number, 200, progress))
        await progress.reached(random.Random(seed).randrange(50, 300), streams=2)
        sleeper.signal(signal.SIGSTOP)
        await stack.models(timeout=5)
        close_ears(bus)  # nor is it told, when it wakes, that others have its jobs
        await stack.worker(*FLAGS)
        await wait_until(lambda: used(stack, 2), description="another has them")
        said = len(tap.of(before["worker"]))
        sleeper.signal(signal.SIGCONT)
        after = {row["worker"] for row in await rows(stack, 2)}
    assert before["worker"] not in after
    print(f"it said {len(tap.of(before['worker'])) - said} things")
    assert await metric(stack, "fenced_deltas_total") >= len(tap.of(before["worker"])) - said
    assert not sleeper.ended


@pytest.mark.parametrize(("fault", "seed"), [("raise", 6), ("memory", 7)])
async def test_an_engine_that_fails_once_loses_no_stream_and_its_worker_goes_on(
    stack: Stack, fault: str, seed: int
) -> None:
    await stack.gateway()
    after = str(random.Random(seed).randrange(40, 300))
    broken = await stack.worker(*HALF, module="tests.fault.faulty_worker", FAULT=fault, AFTER=after)
    await stack.worker(*HALF)
    workers = await rows(stack, 2)
    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(check(stack, number, 80))
    assert await redelivered(stack) == await redelivered(stack, reason="engine") > 0
    assert not broken.ended
    assert {row["worker"] for row in await rows(stack, 2)} == {row["worker"] for row in workers}


@pytest.mark.parametrize("seed", [8])
async def test_a_job_whose_worker_is_silent_but_alive_goes_elsewhere(stack: Stack, seed: int) -> None:
    await stack.gateway("--stall-timeout", "1")
    after = str(random.Random(seed).randrange(40, 300))
    await stack.worker(*HALF, module="tests.fault.faulty_worker", FAULT="silence", AFTER=after)
    await stack.worker(*HALF)
    workers = await rows(stack, 2)
    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(check(stack, number, 80))
    assert await redelivered(stack) == await redelivered(stack, reason="stall") > 0
    assert {row["worker"] for row in await rows(stack, 2)} == {row["worker"] for row in workers}


@pytest.mark.parametrize("seed", [10])
async def test_a_worker_that_is_cut_off_loses_no_stream_and_comes_back(stack: Stack, link: Link, seed: int) -> None:
    """Although nobody ever tells it that its connections are dead."""
    await stack.gateway()
    await stack.worker(*FLAGS, "--redis-url", link.url)
    (before,) = await rows(stack, 1)
    other = await stack.worker(*FLAGS)
    await rows(stack, 2)
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(check(stack, number, 120, progress))
        await shared_by(stack, 2, 8)
        await progress.reached(random.Random(seed).randrange(100, 500))
        link.cut()
        await wait_until(lambda: redelivered(stack, reason="worker_lost"), description="it is noticed", timeout=8)
    link.forget()
    after = {row["worker"] for row in await rows(stack, 2, timeout=30)}
    assert before["worker"] not in after
    other.kill()
    await check(stack, 9, 10)


@pytest.mark.parametrize("seed", [12])
async def test_a_gateway_that_is_cut_off_keeps_its_streams_and_comes_back(stack: Stack, link: Link, seed: int) -> None:
    """Its old connections stay silent for ever: a link that only heals is the easier case."""
    await stack.gateway("--redis-url", link.url)
    await stack.worker(*FLAGS)
    await stack.models("echo")
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(check(stack, number, 200, progress))
        await progress.reached(random.Random(seed).randrange(50, 400), streams=4)
        link.cut()
        healed_at = time.monotonic() + 4
        await wait_until(lambda: _unready(stack), description="it says that it is not ready", timeout=4)
        assert await status(stack, "/health") == 200
        await wait_until(lambda: time.monotonic() > healed_at, description="four seconds")
        link.forget()
        await wait_until(lambda: _ready(stack), description="it is ready again", timeout=15)
    await check(stack, 9, 10)


async def _unready(stack: Stack) -> bool:
    return await status(stack, "/readyz") == 503


async def _ready(stack: Stack) -> bool:
    return await status(stack, "/readyz") == 200
