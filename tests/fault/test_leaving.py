"""A worker that is told to go hands over what it has and is gone within two seconds; nobody's request fails."""

import asyncio
import itertools
import random
import signal
import time

import pytest
import redis

from shared.keys import Keys
from shared.messages import Released
from tests.conftest import RedisServer, wait_until
from tests.e2e.wire import chat, stream
from tests.fault.streams import Progress, check, redelivered, rows, shared_by, texts
from tests.fault.wiretap import Wiretap
from tests.processes import Process, Stack

KEYS = Keys()
FLAGS = ("--model-names", "echo", "--echo-interval-ms", "20", "--limit-worker-concurrency", "4")


@pytest.mark.parametrize(("method", "seed"), [("pull", 1), ("shortest_queue", 2)])
async def test_sigterm_under_load_hands_all_over_within_two_seconds(
    stack: Stack, bus: redis.Redis, method: str, seed: int
) -> None:
    """Both workers are full, and four more jobs wait."""
    await stack.gateway("--dispatch-method", method)
    leaving = await stack.worker(*FLAGS)
    await stack.worker(*FLAGS)
    await rows(stack, 2)
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(check(stack, number, 100, progress))
        await shared_by(stack, 2, 8)
        for number in range(8, 12):
            tasks.create_task(check(stack, number, 30, progress))
        await progress.reached(random.Random(seed).randrange(50, 500))
        started = time.monotonic()
        assert await asyncio.to_thread(leaving.terminate) == 0
        assert time.monotonic() - started < 2
        assert len(await stack.registry()) == 1
    assert await redelivered(stack) == await redelivered(stack, reason="released") >= 4
    assert [len(bus.xinfo_consumers(jobs, "workers")) for jobs in KEYS.job_streams("echo")] == [1, 1, 1]
    assert len(bus.keys("tokenbus:inbox:*")) == 1
    assert bus.keys("tokenbus:dead:*") == []


@pytest.mark.parametrize("seed", [3])
async def test_every_worker_is_replaced_under_load_and_no_request_fails(stack: Stack, seed: int) -> None:
    await stack.gateway()
    workers = [await stack.worker(*FLAGS) for _ in range(3)]
    await rows(stack, 3)
    moments, progress, over = random.Random(seed), Progress(), asyncio.Event()

    async def client(number: int) -> int:
        """One request after another; returns how many."""
        for turn in itertools.count(1):
            await check(stack, number, 20 + (7 * number + turn) % 30, progress)
            if over.is_set():
                return turn
        raise AssertionError

    async with asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(client(number), name=f"client {number}") for number in range(8)]
        for worker in workers:
            await progress.reached(progress.chunks + moments.randrange(50, 200))
            await replace(stack, worker)
        over.set()
    assert sum(task.result() for task in clients) >= 16
    assert await redelivered(stack) == await redelivered(stack, reason="released") > 0
    assert len(await stack.registry()) == 3


async def replace(stack: Stack, worker: Process) -> None:
    await stack.worker(*FLAGS)
    assert await asyncio.to_thread(worker.leave, 2) == 0


@pytest.mark.parametrize("seed", [4])
async def test_with_a_drain_timeout_streams_end_where_they_are_and_what_waits_goes_elsewhere_at_once(
    stack: Stack, bus: redis.Redis, tap: Wiretap, seed: int
) -> None:
    """The jobs that wait are addressed to the worker that leaves: it is stopped while they arrive."""
    await stack.gateway("--dispatch-method", "shortest_queue")
    leaving = await stack.worker(*FLAGS, "--drain-timeout", "30")
    (before,) = await rows(stack, 1)
    inbox = KEYS.inbox("echo", before["worker"])
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(check(stack, number, 350, progress)) for number in range(2)]
        await progress.reached(random.Random(seed).randrange(20, 60), streams=2)
        long = {event.job for event in tap.events}
        leaving.signal(signal.SIGSTOP)
        waiting = [tasks.create_task(stream(stack, chat(texts(9), max_tokens=3))) for _ in range(2)]
        await wait_until(lambda: bus.xlen(inbox) == 4, description="two more are addressed to it")
        leaving.signal(signal.SIGTERM)
        leaving.signal(signal.SIGCONT)
        await stack.worker(*FLAGS)
        for task in waiting:
            assert (await task).text() == "a9 b9 c9"
        assert not any(task.done() for task in running)
        assert not leaving.ended
    assert await asyncio.to_thread(leaving.wait, 5) == 0
    released = {event.job for event in tap.events if isinstance(event, Released)}
    assert not released & long
    assert {event.attempt for event in tap.events if event.job in long} == {0}


async def test_a_worker_leaves_also_while_redis_does_not_answer(own_stack: Stack, own_redis: RedisServer) -> None:
    worker = await own_stack.worker(*FLAGS)
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        worker.signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, 5) == 0
    finally:
        own_redis.process.send_signal(signal.SIGCONT)


async def test_a_worker_that_may_not_subscribe_leaves_when_told(own_stack: Stack, own_redis: RedisServer) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.execute_command("ACL", "SETUSER", "default", "-subscribe")
    worker = own_stack.spawn("worker", "--engine", "echo")
    await wait_until(lambda: "lost: " in worker.said(), description="it tries to subscribe")
    worker.signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 5) == 0
