"""Too much of anything is refused at once, with a time to come back that holds; what was accepted goes on."""

import asyncio
import json
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import redis

from gateway.connections import OTHER_FILES
from tests.conftest import wait_until
from tests.e2e.conftest import server_in
from tests.e2e.wire import Connection, chat, error_of, post
from tests.processes import Stack

CHAT = "/v1/chat/completions"
TRIES = 3  # as many as the openai SDK makes


class Crowd:
    """Clients that come back when they are told to. `unit`: the header that they understand."""

    def __init__(self, stack: Stack, unit: str) -> None:
        self._http = httpx2.AsyncClient(base_url=stack.url, timeout=90, limits=httpx2.Limits(max_connections=200))
        self._unit = unit
        self.got_in: Counter[int] = Counter()  # at which try; 0 is never

    async def ask(self, text: str) -> None:
        for number in range(1, TRIES + 1):
            response = await self._http.post(CHAT, json=chat(text, max_tokens=25))
            if response.status_code == 200:
                self.got_in[number] += 1
                return
            assert response.status_code == 429
            assert error_of(response)["code"] == "queue_full"
            seconds, ms = int(response.headers["retry-after"]), int(response.headers["retry-after-ms"])
            assert 1 <= seconds <= 60
            assert ms <= seconds * 1000 < ms + 1000
            if number < TRIES:
                await asyncio.sleep(seconds if self._unit == "s" else ms / 1000)
        self.got_in[0] += 1

    async def keep_asking(self, name: str, until: float) -> None:
        number = 0
        while time.monotonic() < until:
            number += 1
            await self.ask(f"{name} {number}")

    async def close(self) -> None:
        await self._http.aclose()


async def small(stack: Stack) -> None:
    """One worker with four slots and half a second a reply."""
    await stack.gateway("--max-queue", "8")
    flags = ("--model-names", "echo", "--echo-interval-ms", "20", "--limit-worker-concurrency", "4")
    await stack.worker(*flags)
    await stack.models("echo")


@pytest.mark.parametrize("unit", ["s"])  # the closed loop below knows ms
async def test_of_a_hundred_at_once_nine_of_ten_get_in_as_they_were_told(stack: Stack, unit: str) -> None:
    await small(stack)
    crowd = Crowd(stack, unit)
    await crowd.ask("the first shows how fast it goes")
    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(crowd.ask(f"a{number} b"), name=f"client {number}")
    await crowd.close()
    assert crowd.got_in[0] <= 10, crowd.got_in
    assert crowd.got_in[1] < 50, crowd.got_in


async def test_who_comes_back_gets_in_before_who_only_comes(stack: Stack) -> None:
    await small(stack)
    crowd = Crowd(stack, "ms")
    await crowd.ask("the first shows how fast it goes")
    until = time.monotonic() + 10
    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(crowd.keep_asking(f"a{number}", until), name=f"client {number}")
    await crowd.close()
    later = sum(crowd.got_in.values()) - crowd.got_in[1]
    assert later > 20, crowd.got_in
    assert crowd.got_in[2] >= 0.9 * later, crowd.got_in


LONG = ("--max-model-len", "20000")  # the echo engine takes 128 characters a token


def large(number: int, size: int = 2**20) -> dict[str, Any]:
    """A request of `size` bytes and few tokens, for a worker that is `LONG`."""
    body = chat(f"a{number} b", max_tokens=20)
    body["messages"].insert(0, {"role": "system", "content": "x" * size})
    return body


@pytest.fixture
def tight_stack(tmp_path: Path) -> Iterator[Stack]:
    """Over a Redis of 30 MB that would rather throw keys away than refuse."""
    server = server_in(tmp_path, "--maxmemory", "30mb", "--maxmemory-policy", "allkeys-lru")
    server.start()
    stack = Stack(server.url, tmp_path)
    yield stack
    stack.close()
    server.kill()


async def test_redis_is_never_filled_to_the_brim(tight_stack: Stack) -> None:
    stack = tight_stack
    gateway = await stack.gateway()
    assert "maxmemory-policy allkeys-lru" in gateway.said()
    with redis.Redis.from_url(stack.redis_url) as bus:
        bus.config_set("maxmemory-policy", "noeviction")
        flags = ("--model-names", "echo", "--echo-interval-ms", "20", "--limit-worker-concurrency", "4")
        await stack.worker(*flags, *LONG)
        await stack.models("echo")
        (before,) = await stack.registry()
        answers = await flood(stack, 80)
        assert set(answers) == {200, 429}, answers
        assert answers[200] >= 8, answers
        assert "errorstat_OOM" not in bus.info("errorstats")
        (after,) = await stack.registry()
        assert after["worker"] == before["worker"]
        await wait_until(lambda: bus.info("memory")["used_memory"] < 10e6, description="its memory is free again")
    await wait_until(lambda: admits(stack), description="there is room again", timeout=5)


async def flood(stack: Stack, count: int) -> Counter[int]:
    """So many requests of 1 MB at once: how often which status was the answer."""
    answers: Counter[int] = Counter()
    async with httpx2.AsyncClient(base_url=stack.url, timeout=60) as http, asyncio.TaskGroup() as tasks:

        async def ask(number: int) -> None:
            response = await http.post(CHAT, json=large(number))
            answers[response.status_code] += 1
            if response.status_code == 429:
                assert error_of(response)["code"] == "queue_full"
                assert int(response.headers["retry-after"]) >= 1

        for number in range(count):
            tasks.create_task(ask(number), name=f"client {number}")
    return answers


async def admits(stack: Stack) -> bool:
    return (await asyncio.to_thread(post, stack, CHAT, large(0))).status_code == 200


async def test_the_bodies_of_all_open_requests_are_bounded_together(stack: Stack) -> None:
    await stack.gateway("--max-body-mb", "2", "--max-bodies-mb", "3")
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "20", *LONG)
    await stack.models("echo")
    held = [await Connection.open(stack) for _ in range(2)]
    await held[0].send({**large(0), "max_tokens": 8000, "stream": True})  # is answered
    await held[0].until(b'"content"')
    half = json.dumps(large(1)).encode()[: 2**20]
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**20 + 1000}\r\n\r\n"
    held[1].writer.write(head.encode() + half)  # is being read
    await held[1].writer.drain()

    async def refused() -> httpx2.Response | None:
        response = await asyncio.to_thread(post, stack, CHAT, large(2))
        return response if response.status_code == 429 else None

    response = await wait_until(refused, description="there is no room for a third")
    assert error_of(response)["code"] == "queue_full"
    assert int(response.headers["retry-after"]) >= 1
    assert (await asyncio.to_thread(post, stack, CHAT, chat("a b", max_tokens=1))).status_code == 200
    assert b" 429 " in await in_chunks(stack, json.dumps(large(3)).encode())
    for connection in held:
        connection.reset()
    await wait_until(lambda: admits(stack), description="what was held is let go", timeout=5)


async def in_chunks(stack: Stack, body: bytes) -> bytes:
    """The status line for a body whose length is not said."""
    connection = await Connection.open(stack)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n"
    connection.writer.write(head.encode() + body + b"\r\n0\r\n\r\n")
    status = await connection.until(b"\r\n")
    connection.reset()
    return status


HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


async def ask_health(stack: Stack) -> tuple[Connection, bytes]:
    connection = await Connection.open(stack)
    connection.writer.write(HEALTH)
    return connection, await connection.until(b"\r\n")


async def test_connections_are_bounded_and_idle_ones_are_closed(stack: Stack) -> None:
    gateway = await stack.gateway("--max-connections", "5", "--keep-alive", "2")

    def is_open() -> int:
        return sum(connection.status == "ESTABLISHED" for connection in psutil.Process(gateway.pid).net_connections())

    before = is_open()  # to Redis
    await wait_until(lambda: is_open() <= before, description="the probe of the test has gone")
    idle = [await Connection.open(stack) for _ in range(3)]
    half, _ = await ask_health(stack)
    half.writer.write(HEALTH[:10])
    answered, _ = await ask_health(stack)
    refused, status = await ask_health(stack)
    assert status == b"HTTP/1.1 503 Service Unavailable\r\n"
    rest = await asyncio.wait_for(refused.reader.read(), 10)  # and is closed
    head, body = rest.split(b"\r\n\r\n")
    assert b"retry-after: 2" in head.lower()
    assert b"content-type: application/json" in head.lower()
    assert json.loads(body)["error"]["code"] == "too_many_connections"
    for connection in (*idle, half, answered):
        await asyncio.wait_for(connection.reader.read(), 10)  # the gateway closes each
        connection.reset()
    refused.reset()
    last, status = await ask_health(stack)
    assert b" 200 " in status
    last.reset()


async def test_connections_are_as_many_as_open_files_allow(stack: Stack) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gateway = await stack.gateway("--max-connections", str(10**9))
    assert f"only {hard - OTHER_FILES} connections" in gateway.said()
    assert psutil.Process(gateway.pid).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)


async def test_token_ids_that_never_fit_do_not_reach_a_worker(stack: Stack) -> None:
    await stack.gateway()
    worker = await stack.worker("--model-names", "echo", "--max-model-len", "50")
    await stack.models("echo")
    fits = {"model": "echo", "prompt": [[7] * 49, [8] * 3], "max_tokens": 1}
    assert (await asyncio.to_thread(post, stack, "/v1/completions", fits)).status_code == 200
    worker.signal(signal.SIGSTOP)  # who answers now is the gateway
    for path, param, value in (
        ("/v1/completions", "prompt", [7] * 51),
        ("/v1/completions", "prompt", [[7], [7] * 51]),
        ("/v1/embeddings", "input", [7] * 51),
        ("/v1/embeddings", "input", [[7], [7] * 51]),
    ):
        response = await asyncio.to_thread(post, stack, path, {"model": "echo", param: value})
        error = error_of(response)
        assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
        assert "maximum context length is 50 tokens" in error["message"]
    worker.signal(signal.SIGCONT)
