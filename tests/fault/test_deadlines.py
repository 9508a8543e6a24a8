"""A request that takes too long ends at its deadline, wherever its jobs are, and leaves nothing behind."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import redis

from shared.keys import GROUP, Keys
from tests.conftest import RedisServer, wait_until
from tests.e2e.wire import Connection, Streamed, chat, cycle, error_of, post
from tests.processes import Stack

KEYS = Keys()
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SLOW = ("--model-names", "echo", "--echo-interval-ms", "50")
LATE_S = 3.0  # more than any scheduler takes


@asynccontextmanager
async def ends_after(seconds: float) -> AsyncIterator[None]:
    started = time.monotonic()
    yield
    assert seconds <= time.monotonic() - started < seconds + LATE_S


async def ask(stack: Stack, path: str, body: dict[str, Any], timeout: str) -> httpx2.Response:
    return await asyncio.to_thread(post, stack, path, body, **{"x-request-timeout": timeout})


async def assert_overdue(stack: Stack, path: str, body: dict[str, Any]) -> None:
    """Answered with 504 after a second."""
    async with ends_after(1):
        response = await ask(stack, path, body, "1")
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")


async def streamed(stack: Stack, body: dict[str, Any], timeout: str = "1") -> Streamed:
    async with (
        httpx2.AsyncClient(base_url=stack.url, timeout=30) as http,
        http.stream("POST", CHAT, json={**body, "stream": True}, headers={"x-request-timeout": timeout}) as response,
    ):
        return await Streamed.read(response.status_code, response.aiter_lines())


async def used(stack: Stack, slots: int) -> bool:
    return sum(row["slots_used"] for row in await stack.registry()) == slots


def entries(bus: redis.Redis) -> int:
    streams = [*KEYS.job_streams("echo"), *bus.scan_iter("tokenbus:inbox:*")]
    return sum(bus.xlen(stream) + bus.xpending(stream, GROUP)["pending"] for stream in streams)


async def clean(stack: Stack, bus: redis.Redis) -> None:
    await wait_until(lambda: used(stack, 0), description="the slots are free", timeout=5)
    await wait_until(lambda: entries(bus) == 0, description="the entries are gone", timeout=5)


async def test_a_timeout_that_is_no_positive_number_is_refused(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker("--model-names", "echo")
    await stack.models("echo")
    for wrong in ("0", "-1", "nan", "inf", "1_0", "1e999", "1s", "", "1e", "1" * 40):
        response = await ask(stack, CHAT, chat("a b", max_tokens=1), wrong)
        assert response.status_code == 400, wrong
        assert error_of(response)["param"] == "x-request-timeout"
    for right in ("30", "0.5e2", "29.5"):
        assert (await ask(stack, CHAT, chat("a b", max_tokens=1), right)).status_code == 200


async def test_what_runs_ends_at_its_deadline(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    await stack.worker(*SLOW)
    await stack.models("echo")
    await assert_overdue(stack, CHAT, chat("a b"))
    await assert_overdue(stack, COMPLETIONS, {"model": "echo", "prompt": ["a b", "c d"], "max_tokens": 1000, "n": 2})
    async with ends_after(1):
        stream = await streamed(stack, chat("a b", n=3))
    assert stream.status == 200
    assert stream.error is not None
    assert stream.error["code"] == "deadline_exceeded"
    assert not stream.done
    for choice in range(3):
        assert stream.text(choice) == cycle("a b", len(stream.text(choice).split()))
        assert stream.text(choice)
    await clean(stack, bus)


async def test_what_waits_ends_at_its_deadline_and_what_runs_goes_on(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    await stack.worker(*SLOW, "--limit-worker-concurrency", "1")
    await stack.models("echo")
    running = await Connection.open(stack)
    await running.send(chat("a b", stream=True))
    await running.until(b"content")
    async with asyncio.TaskGroup() as tasks:
        for body in (chat("c d"), chat("c d", stream=True, n=2), chat("long " * 20_000, stream=True)):
            tasks.create_task(assert_overdue(stack, CHAT, body))
        tasks.create_task(assert_overdue(stack, COMPLETIONS, {"model": "echo", "prompt": "a b", "n": 2}))
        tasks.create_task(assert_overdue(stack, EMBEDDINGS, {"model": "echo", "input": ["a b"] * 100}))
    await wait_until(lambda: entries(bus) == 2, description="only what runs is left: one entry, and it pending")
    await wait_until(lambda: not bus.keys("tokenbus:payload:*"), description="no payload is left")
    await running.reader.read(2**20)  # what came meanwhile
    await running.until(b"content")
    running.reset()
    await clean(stack, bus)


@pytest.mark.parametrize("method", ["pull", "shortest_queue"])
async def test_a_job_of_a_worker_that_sleeps_ends_at_its_deadline(stack: Stack, bus: redis.Redis, method: str) -> None:
    await stack.gateway("--dispatch-method", method)
    worker = await stack.worker(*SLOW)
    await stack.models("echo")
    running = asyncio.create_task(streamed(stack, chat("a b"), "1.5"))
    await wait_until(lambda: used(stack, 1), description="it streams")
    worker.signal(signal.SIGSTOP)
    try:
        await assert_overdue(stack, CHAT, chat("c d"))  # waits, in the model's stream or in the inbox
        stream = await running
        assert stream.error is not None
        assert stream.error["code"] == "deadline_exceeded"
        await wait_until(lambda: entries(bus) == 0, description="the entries are gone")
    finally:
        worker.signal(signal.SIGCONT)
    await clean(stack, bus)


async def test_the_flag_bounds_the_header(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway("--request-timeout", "1")
    await stack.worker(*SLOW)
    await stack.models("echo")
    async with ends_after(1):
        assert (await ask(stack, CHAT, chat("a b"), "100")).status_code == 504
    async with ends_after(1):
        assert (await asyncio.to_thread(post, stack, CHAT, chat("a b"))).status_code == 504
    await clean(stack, bus)


async def test_a_deadline_holds_while_redis_is_away(own_stack: Stack, own_redis: RedisServer) -> None:
    await own_stack.gateway()
    await own_stack.worker(*SLOW)
    await own_stack.models("echo")
    running = asyncio.create_task(streamed(own_stack, chat("a b"), "2"))
    await wait_until(lambda: used(own_stack, 1), description="it streams")
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        async with ends_after(1):
            response = await ask(own_stack, CHAT, chat("c d"), "1")  # waits for admission
        assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")
        stream = await running
        assert stream.error is not None
        assert stream.error["code"] == "deadline_exceeded"
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    with redis.Redis.from_url(own_stack.redis_url) as bus:
        await clean(own_stack, bus)


async def test_a_body_that_never_comes_ends_at_the_deadline(stack: Stack) -> None:
    await stack.gateway()
    connection = await Connection.open(stack)
    async with ends_after(1):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nx-request-timeout: 1\r\n\r\n"
        connection.writer.write(head.encode() + b'{"model"')
        assert b" 504 " in await connection.until(b"\r\n")
    connection.reset()
