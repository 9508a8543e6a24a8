"""Anthropic's Messages API, by its own library, on a worker that says what it is told to."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message, MessageParam, ToolParam

from tests.e2e.conftest import CHAT
from tests.e2e.scripted_worker import CALLS
from tests.e2e.wire import post
from tests.processes import Stack

PATH = "/v1/messages"
TOOLS: list[ToolParam] = [
    {"name": "weather", "description": "of a city", "input_schema": {"type": "object", "properties": {}}}
]
COLD = {"temperature": 0}  # the library no longer has it


@pytest.fixture
def client(scripted: Stack) -> Iterator[Anthropic]:
    with Anthropic(base_url=scripted.url, api_key="none", max_retries=0) as client:
        yield client


def asking(*steps: dict[str, Any]) -> list[MessageParam]:
    return [{"role": "user", "content": json.dumps(steps)}]


def body(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "max_tokens": 10, "messages": asking(*steps), **fields}


def create(client: Anthropic, *steps: dict[str, Any], **fields: Any) -> Message:
    message: Message = client.messages.create(model="echo", max_tokens=10, messages=asking(*steps), **fields)
    return message


def without_id(message: Message) -> dict[str, Any]:
    """The ids of calls are made from the message's; the library adds nulls."""
    dumped = message.to_dict(exclude_none=True)
    for block in dumped["content"]:  # type: ignore[attr-defined]
        block.pop("id", None)
    return {name: value for name, value in dumped.items() if name not in ("id", "parsed_output")}


def test_a_message_has_text_and_usage(client: Anthropic) -> None:
    message = create(client, {"text": "Hel"}, {"text": "lo"})
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "echo")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello"}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == (7, 3, 0)
    assert usage.output_tokens_details is not None
    assert usage.output_tokens_details.thinking_tokens == 1


def test_a_stream_makes_the_message_that_comes_whole(client: Anthropic) -> None:
    whole = create(client, *CALLS, tools=TOOLS)
    with client.messages.stream(model="echo", max_tokens=10, messages=asking(*CALLS), tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert without_id(streamed) == without_id(whole)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in whole.content if block.type == "tool_use"] == [{"city": "Rome"}, {}]
    assert whole.stop_reason == "tool_use"
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4


def test_events_come_in_anthropic_s_order(scripted: Stack) -> None:
    lines = post(scripted, PATH, body(*CALLS, tools=TOOLS, stream=True)).text.splitlines()
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert events == [one["type"] for one in data]
    inner = [name.removeprefix("content_block_")[:5] for name in events if name.startswith("content_block")]
    assert inner[0] == "start"
    assert all(after == "start" for before, after in pairwise(inner) if before == "stop")
    assert events[0] == "message_start"
    assert events[-2:] == ["message_delta", "message_stop"]


async def test_the_asynchronous_client_streams_text(scripted: Stack) -> None:
    async with AsyncAnthropic(base_url=scripted.url, auth_token="none", max_retries=0) as client:
        asked = asking({"text": "a "}, {"text": "b"})
        async with client.messages.stream(model="echo", max_tokens=9, messages=asked) as stream:
            assert "".join([text async for text in stream.text_stream]) == "a b"


def test_the_answer_to_a_call_is_taken_with_what_was_called(client: Anthropic) -> None:
    first = create(client, *CALLS, tools=TOOLS)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "3 C"}
        for block in first.content
        if block.type == "tool_use"
    ]
    turns: list[Any] = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [*results, {"type": "text", "text": '[{"text": "cold"}]'}]},
    ]
    second = client.messages.create(model="echo", max_tokens=10, messages=turns, tools=TOOLS)
    assert [block.to_dict() for block in second.content] == [{"type": "text", "text": "cold"}]


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"stop": "END"}, "stop_sequence", "END"),
        ({}, "end_turn", None),
    ],
)
def test_the_end_has_its_reason(client: Anthropic, end: dict[str, Any], reason: str, sequence: str | None) -> None:
    for stream in (False, True):
        if stream:
            with client.messages.stream(model="echo", max_tokens=9, messages=asking({"text": "x"} | end)) as events:
                message = events.get_final_message()
        else:
            message = create(client, {"text": "x"} | end)
        assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


def test_thinking_can_be_left_out(client: Anthropic) -> None:
    message = create(client, *CALLS, tools=TOOLS, thinking={"type": "adaptive", "display": "omitted"})
    assert message.content[0].to_dict() == {"type": "thinking", "thinking": "", "signature": ""}


def test_tokens_are_counted(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model="echo", messages=[{"role": "user", "content": "one two three"}])
    assert counted.input_tokens == 3  # the worker counts the words of the payload's JSON


# -- errors -------------------------------------------------------------------------------------------------------


def error_of(response: httpx2.Response) -> dict[str, Any]:
    told = response.json()
    assert set(told) == {"type", "error", "request_id"}
    assert told["type"] == "error"
    assert set(told["error"]) == {"type", "message"}
    assert told["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    error: dict[str, Any] = told["error"]
    return error


@pytest.mark.parametrize(
    ("raised", "fields"),
    [
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "no script"}]}),
        (anthropic.BadRequestError, {"temperature": 2}),
        (anthropic.BadRequestError, {"output_config": {"format": {"type": "json_schema", "schema": {"type": 5}}}}),
        (anthropic.NotFoundError, {"model": "nobody"}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_library_raises_its_own_error(
    client: Anthropic, raised: type[anthropic.APIStatusError], fields: dict[str, Any], stream: bool
) -> None:
    with pytest.raises(raised) as caught:
        client.post(PATH, body={**body({"text": "x"}), "stream": stream} | fields, cast_to=Message)
    assert caught.value.request_id
    assert caught.value.type in ("invalid_request_error", "not_found_error")


def test_errors_of_every_layer_are_anthropic_s(scripted: Stack) -> None:
    with httpx2.Client(base_url=scripted.url) as http:
        assert error_of(http.get(PATH))["type"] == "invalid_request_error"  # 405
        assert error_of(http.get(f"{PATH}/batches"))["type"] == "not_found_error"
        assert error_of(http.post(PATH, content=b"{"))["type"] == "invalid_request_error"
        assert error_of(http.post(PATH, content=b"x" * 2_000_000))["type"] == "request_too_large"
        assert "error" not in http.get("/nowhere").json().get("type", "")


def test_an_error_in_mid_stream_is_raised_by_the_library(scripted: Stack, client: Anthropic) -> None:
    """A worker that names no tokens cannot be gone on from: here its script ends before its end."""
    broken = asking({"text": "x"}, {"text": "y", "finish_reason": None, "error": None})
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(
            model="echo", max_tokens=9, messages=broken, extra_headers={"x-request-timeout": "1"}
        ) as stream,
    ):
        assert "".join(stream.text_stream) == "xy"
    assert caught.value.type == "timeout_error"


async def test_a_key_comes_as_bearer_or_by_itself(stack: Stack) -> None:
    await stack.gateway(TOKENBUS_API_KEYS="sk-one")
    with httpx2.Client(base_url=stack.url) as http:
        refused = http.post(PATH, json=body(), headers={"x-api-key": "wrong"})
        assert refused.status_code == 401
        assert error_of(refused)["type"] == "authentication_error"
        for headers in ({"x-api-key": "sk-one"}, {"authorization": "Bearer sk-one", "x-api-key": "other"}):
            assert http.post(PATH, json=body(), headers=headers).status_code == 404
    with (
        Anthropic(base_url=stack.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        create(client, {"text": "x"})


def prompt_tokens(message: Message) -> int:
    """Those that its worker had computed before are told apart."""
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


@pytest.mark.model
def test_a_real_model_answers(model_stack: Stack) -> None:
    with Anthropic(base_url=model_stack.url, api_key="none", max_retries=0) as client:
        asked: list[MessageParam] = [{"role": "user", "content": "Say hello."}]
        whole = client.messages.create(model=CHAT, max_tokens=12, messages=asked, system="Be brief.", extra_body=COLD)
        with client.messages.stream(
            model=CHAT, max_tokens=12, messages=asked, system="Be brief.", extra_body=COLD
        ) as stream:
            streamed = stream.get_final_message()
        assert without_id(streamed) | {"usage": None} == without_id(whole) | {"usage": None}
        assert streamed.usage.output_tokens == whole.usage.output_tokens <= 12
        assert prompt_tokens(streamed) == prompt_tokens(whole) > 5
