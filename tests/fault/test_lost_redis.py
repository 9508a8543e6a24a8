"""Redis is killed and comes back, with its data or without: every stream ends exact, and nothing grows meanwhile."""

import asyncio
import random
import time

import httpx2
import psutil
import pytest
import redis

from shared.keys import CLASSES, GROUP, Keys
from tests.conftest import RedisServer, wait_until
from tests.e2e.wire import chat, error_of
from tests.fault.streams import CHAT, Progress, check, redelivered, rows, status, used
from tests.processes import Process, Stack

KEYS = Keys()
NORMAL = KEYS.jobs("echo", CLASSES[1])
LONGER_THAN_A_LEASE_S = 3.5
MAY_GROW = 3 * 2**20  # bytes; a token is 400 in a frame, and thousands are made


def entries(server: RedisServer) -> set[bytes]:
    with redis.Redis.from_url(server.url) as client:
        return {id for id, _ in client.xrange(NORMAL)}


def waiting(server: RedisServer) -> set[bytes]:
    """Entries that were delivered to nobody."""
    with redis.Redis.from_url(server.url) as client:
        rows = client.xpending_range(NORMAL, GROUP, "-", "+", 100)
    return entries(server) - {row["message_id"] for row in rows}


async def two_run_and_four_wait(stack: Stack, server: RedisServer, tasks: asyncio.TaskGroup) -> Progress:
    """A gateway, and one worker with two slots; how far the replies are."""
    await stack.gateway()
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "20", "--limit-worker-concurrency", "2")
    await rows(stack, 1)
    progress = Progress()
    for number in range(2):
        tasks.create_task(check(stack, number, 120, progress))
    await progress.reached(2, streams=2)
    for number in range(2, 6):
        tasks.create_task(check(stack, number, 30, progress))
    await wait_until(lambda: len(waiting(server)) == 4, description="four wait")
    return progress


@pytest.mark.parametrize("seed", [2])
async def test_with_an_append_only_file_queued_jobs_survive_and_streams_go_on(
    lasting_stack: Stack, lasting_redis: RedisServer, seed: int
) -> None:
    stack, server = lasting_stack, lasting_redis
    async with asyncio.TaskGroup() as tasks:
        progress = await two_run_and_four_wait(stack, server, tasks)
        queued = waiting(server)
        await progress.reached(random.Random(seed).randrange(20, 100))
        await restart(server, away=LONGER_THAN_A_LEASE_S)
        assert queued <= entries(server)  # by now the first may have been claimed, and takes 0.6 s
    assert await redelivered(stack, reason="entry_lost") <= 2  # those that ran
    await wait_until(lambda: used(stack, 0), description="no slot is held")
    await check(stack, 9, 5)


async def restart(server: RedisServer, away: float) -> None:
    server.kill()
    back_at = time.monotonic() + away
    await wait_until(lambda: time.monotonic() >= back_at, description="the time is over")
    server.start()


@pytest.mark.parametrize("seed", [3])
async def test_without_persistence_everything_is_issued_again(
    own_stack: Stack, own_redis: RedisServer, seed: int
) -> None:
    stack = own_stack
    async with asyncio.TaskGroup() as tasks:
        progress = await two_run_and_four_wait(stack, own_redis, tasks)
        await progress.reached(random.Random(seed).randrange(20, 100))
        await restart(own_redis, away=1.0)
    assert await redelivered(stack) >= 4
    with redis.Redis.from_url(own_redis.url) as client:
        assert [len(client.xinfo_groups(jobs)) for jobs in KEYS.job_streams("echo")] == [1, 1, 1]
        assert [client.xlen(jobs) for jobs in KEYS.job_streams("echo")] == [0, 0, 0]
    await wait_until(lambda: used(stack, 0), description="no slot is held")


def resident(processes: list[Process]) -> list[int]:
    return [psutil.Process(process.pid).memory_info().rss for process in processes]


@pytest.mark.parametrize("seed", [4])
async def test_while_redis_is_away_new_requests_are_refused_and_nothing_grows(
    own_stack: Stack, own_redis: RedisServer, seed: int
) -> None:
    """Four fast streams run into the void for some seconds."""
    stack = own_stack
    processes = [
        await stack.gateway(),
        await stack.worker("--model-names", "echo", "--echo-interval-ms", "1"),
    ]
    await rows(stack, 1)
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(check(stack, number, 8000, progress))
        await progress.reached(random.Random(seed).randrange(500, 2000), streams=4)
        own_redis.kill()
        await wait_until(lambda: refused(stack), description="new requests are refused", timeout=5)
        before, until = resident(processes), time.monotonic() + 4
        while time.monotonic() < until:
            assert await refused(stack)
        grown = [now - then for now, then in zip(resident(processes), before, strict=True)]
        own_redis.start()
    print(f"grown by {[f'{growth / 2**20:.1f} MB' for growth in grown]}")
    assert max(grown) < MAY_GROW


async def refused(stack: Stack) -> bool:
    """503 and when to come back, for whatever is asked; but the process lives."""
    assert await status(stack, "/health") == 200
    async with httpx2.AsyncClient(base_url=stack.url, timeout=20) as http:
        responses = [
            await http.get("/readyz"),
            await http.post(CHAT, json=chat("a")),
            await http.post(CHAT, json=chat("a", stream=True)),
        ]
    for response in responses:
        if response.status_code != 503:
            return False
        assert error_of(response)["code"] == "bus_unavailable"
        assert int(response.headers["retry-after"]) >= 1
    return True
