"""A client that leaves frees its slot within a step, and leaves nothing behind."""

import asyncio

import pytest
import redis

from shared.keys import Keys
from tests.conftest import wait_until
from tests.e2e.conftest import sdk
from tests.e2e.wire import Connection, chat, stream
from tests.processes import Stack

KEYS = Keys()


async def slots_used(stack: Stack) -> int:
    return sum(row["slots_used"] for row in await stack.registry())


def entries(bus: redis.Redis) -> int:
    return sum(bus.xlen(stream) for stream in KEYS.job_streams("echo"))


def pending(bus: redis.Redis) -> int:
    return sum(bus.xpending(stream, "workers")["pending"] for stream in KEYS.job_streams("echo"))


async def is_idle(stack: Stack, bus: redis.Redis) -> bool:
    return await slots_used(stack) == 0 and entries(bus) == 0 and pending(bus) == 0


async def slow_stack(stack: Stack, *flags: str) -> None:
    """A token every 50 ms: nothing ends by itself within a test."""
    await stack.gateway()
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "50", *flags)
    await stack.models("echo")


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_is_killed_frees_its_slot(stack: Stack, bus: redis.Redis, streaming: bool) -> None:
    await slow_stack(stack)
    connection = await Connection.open(stack)
    await connection.send(chat("a b c", stream=streaming))
    if streaming:
        await connection.until(b'"content":" b"')
    await wait_until(lambda: _has_slots(stack, 1), description="the job runs")
    connection.reset()
    # A step is 50 ms, and the lease that shows the slots is renewed every 500 ms.
    await wait_until(lambda: entries(bus) == 0, description="the entry is settled", timeout=1)
    await wait_until(lambda: is_idle(stack, bus), description="the slot is free", timeout=2)


async def _has_slots(stack: Stack, used: int) -> bool:
    return await slots_used(stack) == used


@pytest.mark.parametrize("size", [70_000, 150_000, 400_000])
async def test_one_with_a_long_body_too(stack: Stack, bus: redis.Redis, size: int) -> None:
    await slow_stack(stack)
    connection = await Connection.open(stack)
    await connection.send(chat("a" * size + " b c", max_tokens=500), apart=True)
    await wait_until(lambda: _has_slots(stack, 1), description="the job runs")
    connection.reset()
    await wait_until(lambda: entries(bus) == 0, description="the entry is settled", timeout=2)


async def test_one_whose_next_request_waits_too(stack: Stack, bus: redis.Redis) -> None:
    await slow_stack(stack)
    connection = await Connection.open(stack)
    await connection.send(chat("a b c", max_tokens=500))
    await wait_until(lambda: _has_slots(stack, 1), description="the job runs")
    await connection.send(chat("d e f"))
    await asyncio.sleep(0.2)  # nothing tells that it was read
    connection.reset()
    await wait_until(lambda: entries(bus) == 0, description="the entry is settled", timeout=2)


async def test_a_client_that_leaves_before_its_body_is_there_is_no_fault(stack: Stack) -> None:
    gateway = await stack.gateway()
    connection = await Connection.open(stack)
    connection.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    await connection.writer.drain()
    await connection.close()
    assert await asyncio.to_thread(gateway.terminate) in (0, -15)
    assert "Traceback" not in gateway.said()


async def test_a_freed_slot_is_taken_at_once(stack: Stack, bus: redis.Redis) -> None:
    await slow_stack(stack, "--limit-worker-concurrency", "1")
    first = await Connection.open(stack)
    await first.send(chat("a b c", stream=True))
    await first.until(b'"content":" b"')
    waiting = asyncio.create_task(stream(stack, chat("x y", max_tokens=2)))
    await wait_until(lambda: entries(bus) == 2, description="the second waits")
    first.reset()
    async with asyncio.timeout(2):
        assert (await waiting).text() == "x y"


async def test_a_client_that_leaves_the_queue_is_never_run(stack: Stack, bus: redis.Redis) -> None:
    await slow_stack(stack, "--limit-worker-concurrency", "1")
    first = await Connection.open(stack)
    await first.send(chat("a b c", stream=True))
    await first.until(b'"content":" b"')
    queued = [await Connection.open(stack) for _ in range(3)]
    for connection in queued:
        await connection.send(chat("never"))
    await wait_until(lambda: entries(bus) == 4, description="three wait")
    for connection in queued:
        connection.reset()
    await wait_until(lambda: entries(bus) == 1, description="nobody waits", timeout=2)
    assert len(bus.keys("tokenbus:cancelled:*")) == 3
    first.reset()
    await wait_until(lambda: is_idle(stack, bus), description="all is free", timeout=3)


async def test_leaving_ends_every_choice_and_every_prompt(stack: Stack, bus: redis.Redis) -> None:
    await slow_stack(stack)
    connection = await Connection.open(stack)
    body = {"model": "echo", "prompt": ["a b", "c d", "e f"], "n": 3, "max_tokens": 1000}
    await connection.send(body, "/v1/completions")
    await wait_until(lambda: _has_slots(stack, 9), description="nine jobs run")
    connection.reset()
    await wait_until(lambda: is_idle(stack, bus), description="all is free", timeout=3)


async def test_closing_the_sdks_stream_frees_the_slot(stack: Stack, bus: redis.Redis) -> None:
    await slow_stack(stack)
    async with sdk(stack) as openai:
        chunks = await openai.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "a b"}], stream=True
        )
        async for chunk in chunks:
            if chunk.choices[0].delta.content:
                break
        await chunks.close()
    await wait_until(lambda: is_idle(stack, bus), description="the slot is free", timeout=3)


async def test_a_burst_of_clients_of_whom_most_leave_gives_the_others_their_own_text(
    stack: Stack, bus: redis.Redis
) -> None:
    await stack.gateway()
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "10", "--limit-worker-concurrency", "16")
    await stack.models("echo")

    async def stays(number: int) -> None:
        words = f"s{number} t{number} u{number}"
        streamed = await stream(stack, chat(words, max_tokens=20 + number % 7))
        assert streamed.text() == " ".join((words.split() * 20)[: 20 + number % 7])
        assert streamed.done

    async def leaves(number: int) -> None:
        connection = await Connection.open(stack)
        await connection.send(chat(f"x{number} y{number}", stream=number % 2 == 0, max_tokens=5000))
        await asyncio.sleep(0.02 * (number % 10))  # at any point of its life
        connection.reset()

    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(leaves(number))
            tasks.create_task(stays(number))
    await wait_until(lambda: is_idle(stack, bus), description="all is free", timeout=3)
    workers = bus.xinfo_consumers("tokenbus:jobs:{echo}:normal", "workers")
    assert [worker["pending"] for worker in workers] == [0]
