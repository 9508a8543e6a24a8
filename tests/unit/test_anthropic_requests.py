"""A request of Anthropic's as the chat request that says the same, and what of it is refused by name."""

from contextlib import suppress
from typing import Any

import pytest

from gateway.anthropic.schemas import CountTokensRequest, MessagesRequest
from gateway.bodies import parse
from shared.errors import InvalidRequest
from tests.unit.anthropic_bodies import BODY, TOOL, USE, body, payload_of

HELLO = {"role": "user", "content": "hi"}


def messages_of(*turns: Any, **fields: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = payload_of(messages=list(turns), **fields)["messages"]
    return messages


def test_text_is_the_same_as_a_string_and_as_blocks() -> None:
    blocks = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "citations": None}]
    assert messages_of({"role": "user", "content": blocks}) == messages_of(HELLO) == [HELLO]


@pytest.mark.parametrize("system", ["be kind", [{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}]])
def test_the_system_prompt_is_the_first_message(system: Any) -> None:
    first, second = messages_of(HELLO, system=system)
    assert (first["role"], first["content"].split()) == ("system", ["be", "kind"])
    assert second == HELLO


def test_a_system_message_may_stand_among_the_others() -> None:
    assert [message["role"] for message in messages_of(HELLO, {"role": "system", "content": "x"})] == ["user", "system"]


def test_turns_of_one_role_are_one_message() -> None:
    assert messages_of(HELLO, HELLO) == [{"role": "user", "content": "hi\nhi"}]


def test_calls_and_their_results_keep_their_order_and_their_ids() -> None:
    turns = [
        HELLO,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, USE | {"id": "a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "and"}, USE | {"id": "b", "input": {}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "3 C"},
                {
                    "type": "tool_result",
                    "tool_use_id": "b",
                    "content": [{"type": "text", "text": "5"}],
                    "is_error": True,
                },
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    _, called, first, second, asked = messages_of(*turns, tools=[TOOL])
    assert called["reasoning_content"] == "hm"
    assert called["content"] == "and"
    assert [(call["id"], call["function"]) for call in called["tool_calls"]] == [
        ("a", {"name": "weather", "arguments": '{"city":"Rome"}'}),
        ("b", {"name": "weather", "arguments": "{}"}),
    ]
    assert first == {"role": "tool", "tool_call_id": "a", "content": "3 C"}
    assert second == {"role": "tool", "tool_call_id": "b", "content": "Error: 5"}
    assert asked == {"role": "user", "content": "so?"}


def test_a_last_turn_of_the_assistant_is_gone_on_with() -> None:
    payload = payload_of(messages=[HELLO, {"role": "assistant", "content": "Well"}])
    assert payload["continue_final_message"] is True
    assert payload["messages"][-1] == {"role": "assistant", "content": "Well"}
    empty = payload_of(messages=[HELLO, {"role": "assistant", "content": ""}])
    assert empty == {"messages": [HELLO]}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, {"mode": "auto", "names": None}),
        ({"type": "auto"}, {"mode": "auto", "names": None}),
        ({"type": "any"}, {"mode": "required", "names": None}),
        ({"type": "tool", "name": "weather"}, {"mode": "required", "names": ["weather"]}),
    ],
)
def test_the_choice_of_a_tool_is_kept(choice: Any, expected: dict[str, Any]) -> None:
    payload = payload_of(tools=[TOOL], tool_choice=choice)
    assert payload["tool_choice"] == expected
    assert "parallel_tool_calls" not in payload
    assert payload["tools"] == [{"name": "weather", "description": "of a city", "parameters": TOOL["input_schema"]}]


def test_one_tool_at_a_time_and_none() -> None:
    alone = payload_of(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert alone["parallel_tool_calls"] is False
    assert "tools" not in payload_of(tools=[TOOL], tool_choice={"type": "none"})


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max"),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8000}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}}, "high"),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}, "output_config": {"effort": "low"}}, "low"),
    ],
)
def test_thinking_becomes_an_effort(fields: dict[str, Any], effort: str | None) -> None:
    assert payload_of(**fields, max_tokens=20_000).get("reasoning_effort") == effort


def test_sampling_and_the_output_s_schema_are_kept() -> None:
    schema = {"type": "object", "properties": {}}
    chat = parse(
        body(
            stop_sequences=["x"],
            temperature=0.5,
            top_k=3,
            top_p=0.9,
            output_config={"format": {"type": "json_schema", "schema": schema}},
        ),
        MessagesRequest,
    ).chat()
    assert (chat.stops, chat.temperature, chat.top_k, chat.top_p, chat.limit) == (("x",), 0.5, 3, 0.9, 100)
    assert chat.structured is not None
    assert chat.structured.value == schema


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "me"}},
        {"service_tier": "auto"},
        {"cache_control": {"type": "ephemeral"}},
        {"speed": "fast"},
        {"mcp_servers": []},
        {"container": None},
        {"tools": [TOOL | {"cache_control": {"type": "ephemeral"}, "type": "custom", "eager_input_streaming": True}]},
    ],
    ids=str,
)
def test_hints_are_taken(fields: dict[str, Any]) -> None:
    assert payload_of(**fields)["messages"] == [HELLO]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"max_tokens": None}, "max_tokens", "valid integer"),
    ({"max_tokens": 0}, "max_tokens", "greater"),
    ({"temperature": 1.1}, "temperature", "less than"),
    ({"top_p": 0}, "top_p", "greater"),
    ({"top_k": -1}, "top_k", "greater"),
    ({"seed": 1}, "seed", "Unrecognized"),
    ({"user": "me"}, "user", "not supported"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers", "not supported"),
    ({"container": "c"}, "container", "not supported"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "'user'"),
    ({"messages": [{"role": "user"}]}, "messages", "required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages", "valid"),
    ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages", "name"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages", "type 'image' are not supported"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages", "type 'document'"),
    ({"messages": [{"role": "user", "content": [USE]}]}, "messages", "type 'tool_use'"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages", "type None"),
    ({"messages": [HELLO, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}]}, "messages",
     "redacted_thinking"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]}, None, "'a'"),
    ({"messages": [HELLO, {"role": "assistant", "content": [USE]}]}, None, "needs a 'tool_result'"),
    ({"messages": [HELLO, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [IMAGE]}]}]}, "messages", "'image'"),
    ({"system": [IMAGE]}, "system", "text"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools", "'web_search_20250305'"),
    ({"tools": [{"name": "f"}]}, "tools", "required"),
    ({"tools": [TOOL, TOOL]}, None, "same name"),
    ({"tools": [TOOL | {"defer_loading": True}]}, "tools", "False"),
    ({"tools": [TOOL | {"input_examples": [{}]}]}, "tools", "at most 0"),
    ({"tool_choice": {"type": "any"}}, None, "needs 'tools'"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, None, "'other'"),
    ({"tools": [TOOL], "tool_choice": {"type": "must"}}, "tool_choice", "'tool'"),
    ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking", "1024"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, None, "more than 'thinking.budget_tokens'"),
    ({"thinking": {"type": "between_tools"}}, "thinking", "'adaptive'"),
    ({"output_config": {"effort": "none"}}, "output_config", "'low'"),
    ({"stop_sequences": [""]}, "stop_sequences", "at least 1"),
    ({"stream": "yes"}, "stream", "boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "why"), REFUSED, ids=lambda value: str(value)[:70])
def test_what_is_not_honoured_is_refused(fields: dict[str, Any], param: str | None, why: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(body(**fields), MessagesRequest)
    assert refusal.value.param == param
    assert why in refusal.value.message
    assert "\n" not in refusal.value.message


@pytest.mark.parametrize("depth", [250, 300, 900, 5000])
@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [HELLO, {"role": "assistant", "content": [USE | {"input": 17}]}, HELLO]},
        {"tools": [TOOL | {"input_schema": 17}]},
        {"output_config": {"format": {"type": "json_schema", "schema": 17}}},
        {"system": 17},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_deep_nesting_is_never_a_fault(fields: dict[str, Any], depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    with suppress(InvalidRequest, RecursionError):  # the gateway answers the second as the first
        parse(body(**fields).replace(b"17", deep.encode()), MessagesRequest).chat().payload()


def test_counting_takes_what_the_prompt_is_made_of_and_no_more() -> None:
    counted = {name: value for name, value in BODY.items() if name != "max_tokens"}
    assert parse(body(counted, tools=[TOOL]), CountTokensRequest).chat().payload()["messages"] == [HELLO]
    with pytest.raises(InvalidRequest, match="Unrecognized request argument supplied: max_tokens"):
        parse(body(), CountTokensRequest)
