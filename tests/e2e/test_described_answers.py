"""Every answer is one that /openapi.json describes: whole ones, events, and refusals."""

import json
from typing import Any

import httpx2
import pytest
import redis
from jsonschema import ValidationError

from tests.conftest import wait_until
from tests.description import Description, document
from tests.e2e.conftest import EMBEDDINGS
from tests.e2e.scripted_worker import CALLS
from tests.e2e.wire import Connection, chat
from tests.processes import Stack

CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
STORED = f"{RESPONSES}/{{id}}"
KEY = "sk-key"
DESCRIBED = Description(document(KEY))
LOGPROB = ["a", -0.5, None, [["a", -0.5], ["b", -1.5, [98]]]]
SAID: list[dict[str, Any]] = [
    *CALLS,
    {"text": "a", "logprobs": [LOGPROB]},
    {"text": "", "logprobs": [LOGPROB]},
    {"text": "b", "finish_reason": "length"},
]


def answer(stack: Stack, path: str, body: Any = None, *, method: str = "POST", at: str = "", **headers: str) -> Any:
    """Sends it, and looks at what comes back. `at`: the path with its parameters filled in."""
    with httpx2.Client(base_url=stack.url, timeout=60) as http:
        response = http.request(method, at or path, json=body, headers=headers)
    DESCRIBED.check(method, path, response)
    return response


def scripted_chat(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "max_tokens": 50, "messages": [{"role": "user", "content": json.dumps(steps)}], **fields}


@pytest.mark.parametrize("stream", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_chats(scripted: Stack, stream: dict[str, Any]) -> None:
    for fields in ({}, {"logprobs": True, "top_logprobs": 2}, {"n": 2}):
        response = answer(scripted, CHAT, scripted_chat(*SAID, **stream, **fields))
        assert response.status_code == 200
        assert '"reasoning_content"' in response.text
        assert '"tool_calls"' in response.text
        assert ("top_logprobs" in response.text) is ("logprobs" in fields or "stream" in fields or bool(stream))


@pytest.mark.parametrize("stream", [False, True])
def test_messages(scripted: Stack, stream: bool) -> None:
    for steps in (SAID, [{"text": "a"}], [{"text": "a", "stop": "b"}], [{"text": "a", "finish_reason": "length"}]):
        response = answer(scripted, MESSAGES, scripted_chat(*steps, stream=stream))
        assert response.status_code == 200
    assert answer(scripted, f"{MESSAGES}/count_tokens", {"model": "echo", "messages": chat("a")["messages"]}).json()


def said(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A response of these steps."""
    return {"model": "echo", "input": json.dumps(steps), **fields}


TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}]
FORM = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}, "verbosity": "low"}


@pytest.mark.parametrize("stream", [False, True])
def test_responses(scripted: Stack, stream: bool) -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": json.dumps(SAID)}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "a"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "b"}]},
        {"role": "user", "content": json.dumps(SAID)},
    ]
    for fields in (
        {"store": False},
        {"top_logprobs": 2, "reasoning": {"effort": "low", "summary": "auto"}, "metadata": {"a": "b"}},
        {"input": items, "tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}},
        {"background": True, "text": FORM},
        {"input": json.dumps([{"text": "a", "stop": "b"}])},
        {"input": json.dumps([{"text": ""}])},
    ):
        response = answer(scripted, RESPONSES, said(*SAID, stream=stream) | fields)
        assert response.status_code == 200
        assert not stream or '"response.output_item.done"' in response.text
    kept = answer(scripted, RESPONSES, said(*SAID) | {"input": items}).json()
    again = {"previous_response_id": kept["id"], "model": "echo", "input": json.dumps(SAID)}
    more = answer(scripted, RESPONSES, again).json()
    for id in (kept["id"], more["id"]):
        assert answer(scripted, STORED, method="GET", at=f"{RESPONSES}/{id}").status_code == 200
        assert "event: " in answer(scripted, STORED, method="GET", at=f"{RESPONSES}/{id}?stream=true").text
        listed = answer(scripted, f"{STORED}/input_items", method="GET", at=f"{RESPONSES}/{id}/input_items")
        assert len(listed.json()["data"]) >= len(items)
        assert answer(scripted, f"{STORED}/cancel", at=f"{RESPONSES}/{id}/cancel").status_code == 400
        assert answer(scripted, STORED, method="DELETE", at=f"{RESPONSES}/{id}").status_code == 200
        assert answer(scripted, STORED, method="DELETE", at=f"{RESPONSES}/{id}").status_code == 404


def test_responses_in_the_background(echo_stack: Stack) -> None:
    begun = answer(echo_stack, RESPONSES, {"model": "parrot", "input": "a b", "background": True}).json()
    assert begun["status"] == "queued"
    at = f"{RESPONSES}/{begun['id']}"
    assert answer(echo_stack, STORED, method="GET", at=at).status_code == 200
    assert answer(echo_stack, f"{STORED}/cancel", at=f"{at}/cancel").status_code == 200
    assert answer(echo_stack, STORED, method="GET", at=f"{at}?starting_after=1").status_code == 400
    assert answer(echo_stack, f"{RESPONSES}/input_tokens", {"model": "parrot", "input": "a"}).status_code == 400


@pytest.mark.parametrize("stream", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_completions(echo_stack: Stack, stream: dict[str, Any]) -> None:
    for fields in (
        {},
        {"logprobs": 0},
        {"logprobs": 2, "echo": True},
        {"prompt": ["a", "b"], "n": 2},
        {"max_tokens": 0},
    ):
        body = {"model": "echo", "prompt": "a b", "max_tokens": 3, **stream, **fields}
        assert answer(echo_stack, COMPLETIONS, body).status_code == 200


@pytest.mark.model
def test_vectors_rankings_and_tokens(model_stack: Stack) -> None:
    for encoding in ("float", "base64"):
        body = {"model": EMBEDDINGS, "input": ["a", "b"], "encoding_format": encoding}
        assert answer(model_stack, "/v1/embeddings", body).status_code == 200
    for path in ("/v1/rerank", "/rerank"):
        for wanted in (True, False):
            body = {"model": EMBEDDINGS, "query": "a", "documents": ["a", "b"], "return_documents": wanted}
            assert answer(model_stack, path, body).status_code == 200
    for wanted in (True, False):
        body = {"model": EMBEDDINGS, "prompt": "a b", "return_token_strs": wanted}
        assert answer(model_stack, "/tokenize", body).status_code == 200
    assert answer(model_stack, "/detokenize", {"model": EMBEDDINGS, "tokens": [101, 102]}).status_code == 200


def test_models_and_health(echo_stack: Stack) -> None:
    for path in ("/v1/models", "/health", "/livez", "/readyz", "/version", "/metrics"):
        assert answer(echo_stack, path, method="GET").status_code == 200
    model = "/v1/models/{name}"
    assert answer(echo_stack, model, method="GET", at="/v1/models/parrot").status_code == 200
    assert answer(echo_stack, model, method="GET", at="/v1/models/no/body").status_code == 404


@pytest.mark.parametrize(
    "path", [CHAT, COMPLETIONS, RESPONSES, "/v1/embeddings", "/tokenize", MESSAGES, f"{MESSAGES}/count_tokens"]
)
def test_refusals(echo_stack: Stack, path: str) -> None:
    body = {"model": "nobody"}
    right: dict[str, Any] = {
        CHAT: body | {"messages": chat("a")["messages"]},
        COMPLETIONS: body | {"prompt": "a"},
        RESPONSES: body | {"input": "a"},
        "/v1/embeddings": body | {"input": "a"},
        "/tokenize": body | {"prompt": "a"},
        MESSAGES: body | {"messages": chat("a")["messages"], "max_tokens": 1},
        f"{MESSAGES}/count_tokens": body | {"messages": chat("a")["messages"]},
    }[path]
    told = [
        answer(echo_stack, path, {}),
        answer(echo_stack, path, right),
        answer(echo_stack, path, {"x": "x" * 2**21}),
        answer(echo_stack, path, right, **{"content-type": "text/plain"}),
        answer(echo_stack, path, right | {"model": "echo"}, **{"x-request-timeout": "1e-9"}),
    ]
    assert [response.status_code for response in told] == [400, 404, 413, 415, 504]


async def test_refusals_for_want_of_a_key_of_room_of_time_and_of_workers(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway("--max-queue", "1", "--no-worker-timeout", "1", TOKENBUS_API_KEYS=KEY)
    flags = ("--echo-interval-ms", "50", "--limit-worker-concurrency", "1")
    worker = await stack.worker("--model-names", "echo", *flags)
    keyed = {"x-api-key": KEY}
    body = chat("a b", max_tokens=5000)
    assert answer(stack, "/v1/models", method="GET").status_code == 401
    for path in (CHAT, MESSAGES):
        assert answer(stack, path, body).status_code == 401
        late = answer(stack, path, body | {"stream": True}, **keyed, **{"x-request-timeout": "1"})
        assert late.status_code == 200
        assert "deadline" in late.text
    held = [await Connection.open(stack) for _ in range(2)]
    for connection in held:
        await connection.send(body, head=f"x-api-key: {KEY}\r\n")
    await wait_until(lambda: bus.xlen("tokenbus:jobs:{echo}:normal") == 2, description="one runs, one waits")
    for path in (CHAT, MESSAGES):
        assert answer(stack, path, body, **keyed).status_code == 429
    for connection in held:
        connection.reset()
    await wait_until(lambda: bus.xlen("tokenbus:jobs:{echo}:normal") == 0, description="nothing waits")
    assert worker.terminate() == 0
    for path in (CHAT, MESSAGES):
        assert answer(stack, path, body, **keyed).status_code == 503


def test_an_answer_that_is_not_described_is_found(echo_stack: Stack) -> None:
    with httpx2.Client(base_url=echo_stack.url) as http:
        response = http.get("/version")
        with pytest.raises(ValidationError):
            DESCRIBED.check("GET", "/health", response)
        streamed = http.post(CHAT, json=chat("a", max_tokens=1, stream=True))
        with pytest.raises(ValidationError):
            DESCRIBED.check("POST", COMPLETIONS, streamed)
