"""The nine faults of FIELD.md's table: what FastChat's clients see, and what ours see instead."""

import asyncio

import pytest
import redis

from tests.conftest import wait_until
from tests.e2e.wire import Connection, chat, cycle, error_of, post, stream
from tests.processes import Stack

CHAT = "/v1/chat/completions"


async def start(stack: Stack, *flags: str) -> None:
    await stack.gateway("--no-worker-timeout", "1", *flags)


async def used(stack: Stack, slots: int) -> bool:
    return sum(row["slots_used"] for row in await stack.registry()) == slots


async def test_a_worker_killed_mid_stream_is_told_in_an_error_event_if_nobody_can_go_on(stack: Stack) -> None:
    await start(stack)
    worker = await stack.worker("--model-names", "echo", "--echo-interval-ms", "20")
    await stack.models("echo")
    running = asyncio.create_task(stream(stack, chat("a b", max_tokens=1000)))
    await wait_until(lambda: used(stack, 1), description="it streams")
    worker.kill()
    async with asyncio.timeout(15):
        streamed = await running
    assert streamed.text().startswith("a b a")
    assert streamed.error is not None
    assert set(streamed.error) == {"message", "type", "param", "code"}


async def test_requests_after_a_workers_death_go_to_the_living(stack: Stack) -> None:
    await start(stack, "--dispatch-method", "lottery")
    workers = [await stack.worker("--model-names", "echo") for _ in range(2)]
    await stack.models("echo")
    workers[0].kill()
    for number in range(10):  # some while the dead one's lease still stands
        response = await asyncio.to_thread(post, stack, CHAT, chat(f"n{number} b", max_tokens=3))
        assert response.status_code == 200
        assert response.json()["choices"][0]["message"]["content"] == f"n{number} b n{number}"


async def test_a_worker_told_to_end_deregisters_at_once(stack: Stack) -> None:
    await start(stack)
    worker = await stack.worker("--model-names", "echo")
    await stack.models("echo")
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await stack.registry() == []
    response = post(stack, CHAT, chat("a"))
    assert (response.status_code, error_of(response)["code"]) == (503, "model_unavailable")


async def test_a_gateway_started_anew_knows_every_model_at_once(stack: Stack) -> None:
    await start(stack)
    await stack.worker("--model-names", "echo")
    await stack.models("echo")
    for process in stack._processes[:1]:
        process.kill()
    await start(stack)
    assert post(stack, CHAT, chat("a b", max_tokens=2)).status_code == 200


async def test_a_plain_request_whose_client_left_is_not_computed_to_its_end(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "50")
    await stack.models("echo")
    connection = await Connection.open(stack)
    await connection.send(chat("a b"))
    await wait_until(lambda: used(stack, 1), description="it runs")
    connection.reset()
    await wait_until(lambda: used(stack, 0), description="the slot is free", timeout=2)
    assert bus.xlen("tokenbus:jobs:{echo}:normal") == 0


@pytest.mark.model
def test_wrong_embedding_inputs_hang_nobody(model_stack: Stack) -> None:
    for _ in range(5):
        body = {"model": "all-minilm-l6-v2", "input": [1.5]}
        assert post(model_stack, "/v1/embeddings", body).status_code == 400
    good = post(model_stack, "/v1/embeddings", {"model": "all-minilm-l6-v2", "input": "still here"})
    assert good.status_code == 200


async def test_overload_is_refused_with_429(stack: Stack) -> None:
    await start(stack, "--max-queue", "1")
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "50", "--limit-worker-concurrency", "1")
    await stack.models("echo")
    held = [await Connection.open(stack) for _ in range(4)]
    for connection in held:
        await connection.send(chat("a b", stream=True))
    refused = await asyncio.to_thread(post, stack, CHAT, chat("a b"))
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    for connection in held:
        connection.reset()


@pytest.mark.parametrize("path", ["/api/v1/chat/completions", CHAT, f"/{CHAT}", f"{CHAT}/", "/v1/chat%2Fcompletions"])
async def test_no_path_skips_the_key(stack: Stack, path: str) -> None:
    await start(stack, "--api-keys", "sk-one")
    response = post(stack, path, chat("a"))
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("role", ["tool", "developer"])
def test_every_role_is_understood(echo_stack: Stack, role: str) -> None:
    said = [{"role": role, "content": "x", "tool_call_id": "1"}, {"role": "user", "content": "a b"}]
    response = post(echo_stack, CHAT, {"model": "echo", "messages": said, "max_tokens": 2})
    assert response.json()["choices"][0]["message"]["content"] == "a b"


@pytest.mark.parametrize("role", ["tool", "developer"])
@pytest.mark.model
def test_every_role_is_understood_by_a_real_template(model_stack: Stack, role: str) -> None:
    said = [{"role": role, "content": "x", "tool_call_id": "1"}, {"role": "user", "content": "hi"}]
    response = post(model_stack, CHAT, {"model": "smol", "messages": said, "max_tokens": 2})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "ignored",
    [{"tools": [{"type": "function", "function": {"name": "f"}}]}, {"response_format": {"type": "json_object"}},
     {"logit_bias": {"5": 5}}, {"stop_token_ids": [5]}],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_nothing_is_silently_ignored(echo_stack: Stack, ignored: dict[str, object]) -> None:
    response = post(echo_stack, CHAT, chat("a", **ignored))
    assert (response.status_code, error_of(response)["param"]) == (400, next(iter(ignored)))


async def test_what_fastchat_ignored_and_is_not_refused_works(echo_stack: Stack) -> None:
    streamed = await stream(echo_stack, chat("a b", max_completion_tokens=5, stream_options={"include_usage": True}))
    assert streamed.text() == cycle("a b", 5)
    assert streamed.chunks[-1]["usage"]["completion_tokens"] == 5
