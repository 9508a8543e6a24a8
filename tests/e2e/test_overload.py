"""Too much work, nobody to do it, or no bus: the client is told so at once, and when to come back."""

import asyncio
import signal

import httpx2
import openai as sdk_module
import pytest
import redis

from shared.keys import Keys
from tests.conftest import RedisServer, wait_until
from tests.e2e.conftest import sdk
from tests.e2e.wire import Connection, chat, error_of, post, stream
from tests.processes import Stack

KEYS = Keys()
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("method", ["pull", "shortest_queue", "lottery"])
async def test_a_full_queue_is_429_with_retry_after(stack: Stack, bus: redis.Redis, method: str) -> None:
    await stack.gateway("--max-queue", "2", "--dispatch-method", method)
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "50", "--limit-worker-concurrency", "1")
    await stack.models("echo")
    connections = []
    for waiting in range(3):
        connection = await Connection.open(stack)
        await connection.send(chat("a b", stream=True))
        connections.append(connection)
        if not waiting:
            await connection.until(b"content")  # it runs; the next two wait
    await wait_until(lambda: _queue(stack, bus) == 3, description="one runs, two wait")
    response = post(stack, CHAT, chat("one too many"))
    assert response.status_code == 429
    assert error_of(response)["code"] == "queue_full"
    assert 1 <= int(response.headers["retry-after"]) < 120
    async with sdk(stack) as openai:
        with pytest.raises(sdk_module.RateLimitError):
            await openai.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}], stream=True)
    connections[1].reset()
    await wait_until(lambda: _queue(stack, bus) == 2, description="there is room again")
    assert bus.keys("tokenbus:payload:*") == []
    for connection in connections:
        connection.reset()


def _queue(stack: Stack, bus: redis.Redis) -> int:
    streams = [*KEYS.job_streams("echo"), *bus.scan_iter("tokenbus:inbox:*")]
    return sum(bus.xlen(stream) for stream in streams)


async def test_a_refused_request_with_a_large_prompt_leaves_no_payload(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway("--max-queue", "1")
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "50", "--limit-worker-concurrency", "1")
    await stack.models("echo")
    held = [await Connection.open(stack) for _ in range(2)]
    await held[0].send(chat("a b", stream=True))
    await held[0].until(b"content")
    await held[1].send(chat("a b", stream=True))
    await wait_until(lambda: _queue(stack, bus) == 2, description="one runs, one waits")
    response = post(stack, CHAT, chat("w" * 200_000, max_tokens=1))
    assert response.status_code == 429
    await wait_until(lambda: bus.keys("tokenbus:payload:*") == [], description="no payload is left", timeout=2)
    for connection in held:
        connection.reset()


async def test_a_known_model_with_nobody_alive_is_503_and_an_unknown_one_404(stack: Stack) -> None:
    await stack.gateway()
    worker = await stack.worker("--model-names", "echo")
    await stack.models("echo")
    worker.kill()
    await stack.models(timeout=5)
    response = post(stack, CHAT, chat("a"))
    assert response.status_code == 503
    assert error_of(response)["code"] == "model_unavailable"
    assert 1 <= int(response.headers["retry-after"]) < 120
    assert post(stack, CHAT, {**chat("a"), "model": "never"}).status_code == 404


async def test_without_redis_it_lives_but_is_not_ready_and_comes_back(own_stack: Stack, own_redis: RedisServer) -> None:
    await own_stack.gateway()
    await own_stack.worker("--model-names", "echo")
    await own_stack.models("echo")
    own_redis.kill()
    async with httpx2.AsyncClient(base_url=own_stack.url, timeout=20) as http:
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        assert int(ready.headers["retry-after"]) >= 1
        assert (await http.get("/health")).status_code == 200
        for body in (chat("a"), chat("a", stream=True), {**chat("a"), "model": "unknown"}):
            response = await http.post(CHAT, json=body)
            assert response.status_code == 503
            assert error_of(response)["code"] == "bus_unavailable"
            assert int(response.headers["retry-after"]) >= 1
        own_redis.start()
        await wait_until(lambda: _status(http, "/readyz", 200), description="ready again")
        await wait_until(lambda: _answers(http), description="served again", timeout=15)


async def _status(http: httpx2.AsyncClient, path: str, status: int) -> bool:
    return (await http.get(path)).status_code == status


async def _answers(http: httpx2.AsyncClient) -> bool:
    return (await http.post(CHAT, json=chat("a b", max_tokens=2))).status_code == 200


async def test_a_redis_that_hangs_does_not_hold_a_request_for_ever(own_stack: Stack, own_redis: RedisServer) -> None:
    await own_stack.gateway()
    await own_stack.worker("--model-names", "echo")
    await own_stack.models("echo")
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        async with httpx2.AsyncClient(base_url=own_stack.url, timeout=20) as http:
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/readyz")).status_code == 503
            response = await http.post(CHAT, json=chat("a"))
            assert response.status_code == 503
    finally:
        own_redis.process.send_signal(signal.SIGCONT)


async def test_a_stream_whose_worker_and_all_others_are_gone_ends_with_an_error_event(stack: Stack) -> None:
    await stack.gateway("--no-worker-timeout", "1")
    worker = await stack.worker("--model-names", "echo", "--echo-interval-ms", "20")
    await stack.models("echo")
    running = asyncio.create_task(stream(stack, chat("a b", max_tokens=500)))
    await wait_until(lambda: _busy(stack), description="it streams")
    worker.kill()
    async with asyncio.timeout(15):
        streamed = await running
    assert streamed.error is not None
    assert streamed.error["code"] == "model_unavailable"
    assert not streamed.done


async def _busy(stack: Stack) -> bool:
    return any(row["slots_used"] for row in await stack.registry())
