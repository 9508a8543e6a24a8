"""Bodies of many megabytes, within the limit: answered, or refused, and nobody else notices."""

import json
from typing import Any

from tests.e2e.test_errors import POSTS
from tests.e2e.wire import chat, error_of, post, refusal_of
from tests.processes import Stack

MB = 2**20
CHAT = "/v1/chat/completions"
FREE: dict[str, Any] = {
    "metadata": {},
    "chat_template_kwargs": {},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
}


async def serve(stack: Stack) -> list[str]:
    """The ids of who is on the bus."""
    await stack.gateway()
    await stack.worker("--model-names", "echo")
    await stack.models("echo")
    return await on_bus(stack)


async def on_bus(stack: Stack) -> list[str]:
    return [row["worker"] for row in await stack.registry()]


async def test_ten_megabytes_are_a_request_like_any_other(stack: Stack) -> None:
    before = await serve(stack)
    padded = json.dumps(chat("a b", max_tokens=2)).encode() + b" " * (10 * MB)
    assert post(stack, CHAT, padded).json()["choices"][0]["message"]["content"] == "a b"
    hinted = chat("a b", max_tokens=2, user="u" * 10 * MB)
    assert post(stack, CHAT, hinted).json()["choices"][0]["message"]["content"] == "a b"
    for path in POSTS:
        body = {"model": "m" * (10 * MB), "messages": "x" * (10 * MB)}
        response = post(stack, path, body)
        assert response.status_code == 400
        refusal_of(response)
        assert len(response.content) < 2000
    assert await on_bus(stack) == before


async def test_ten_megabytes_of_prompt_are_too_long_for_the_context(stack: Stack) -> None:
    await serve(stack)
    for unit in ("a ", "w", "\U0001f600"):
        text = unit * (10 * MB // len(unit.encode()))
        for path, body in ((CHAT, chat(text)), ("/v1/completions", {"model": "echo", "prompt": text})):
            response = post(stack, path, body)
            assert response.status_code == 400, unit
            assert error_of(response)["code"] == "context_length_exceeded"


async def test_nobody_loses_its_lease_over_what_is_passed_on_as_it_is(stack: Stack) -> None:
    """Ten million lists: parsed in the gateway and in the worker, shown to a template, walked by garbage collectors."""
    before = await serve(stack)
    lists = "[" + "[]," * (8 * MB) + "[]]"
    for name, value in FREE.items():
        body = json.dumps(chat("a b", max_tokens=2, **{name: value})).replace("{}", f'{{"x": {lists}}}')
        response = post(stack, CHAT, body.encode())
        assert (response.status_code, error_of(response)["param"]) == (400, name)
    assert post(stack, CHAT, chat("a b", max_tokens=2)).status_code == 200
    assert await on_bus(stack) == before


async def test_more_tokens_than_the_context_has_are_no_text(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker("--model-names", "echo", module="tests.e2e.scripted_worker")
    await stack.models("echo")
    assert post(stack, "/detokenize", {"model": "echo", "tokens": [1] * 1000}).status_code == 200
    response = post(stack, "/detokenize", {"model": "echo", "tokens": [1] * 1001})
    assert (response.status_code, error_of(response)["param"]) == (400, "tokens")
    assert error_of(response)["code"] == "context_length_exceeded"
