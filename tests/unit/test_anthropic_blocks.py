"""Content blocks: their events in Anthropic's order, and the message that they make."""

from typing import Any

import orjson
import pytest

from gateway.anthropic.blocks import Content, ContentBlocks, stop_reason, tool_input
from gateway.anthropic.errors import error_body, speaks_anthropic
from gateway.anthropic.replies import MessageEvents, usage_of
from gateway.inflight import Update
from shared.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineFailed,
    InvalidApiKey,
    InvalidRequest,
    ModelNotFound,
    NoWorkers,
    QueueFull,
    TokenbusError,
)
from shared.messages import ToolCallDelta

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def update(**fields: Any) -> Update:
    return Update(index=0, **fields)


def call(index: int, name: str = "", arguments: str = "") -> ToolCallDelta:
    return ToolCallDelta(index, name, arguments)


UPDATES = [
    update(reasoning="let me "),
    update(reasoning="see", text="I'll "),
    update(text="look", tool_calls=[call(0, "weather", '{"city"')]),
    update(tool_calls=[call(0, arguments=': "Rome"}'), call(1, "time")]),
    update(finish_reason="stop"),
]


def events_of(*updates: Update, **options: Any) -> list[dict[str, Any]]:
    blocks = ContentBlocks("msg_1", **options)
    return [event for one in updates for event in blocks.take(one)] + list(blocks.end())


def outline(events: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Index and what happens there: start of what, delta of what, or stop."""
    said = []
    for event in events:
        what = event.get("content_block") or event.get("delta") or {"type": "stop"}
        said.append((event["index"], what["type"]))
    return said


def test_one_block_is_open_at_a_time() -> None:
    assert outline(events_of(*UPDATES)) == [
        (0, "thinking"), (0, "thinking_delta"), (0, "thinking_delta"), (0, "stop"),
        (1, "text"), (1, "text_delta"), (1, "text_delta"), (1, "stop"),
        (2, "tool_use"), (2, "input_json_delta"), (2, "input_json_delta"), (2, "stop"),
        (3, "tool_use"), (3, "stop"),
    ]  # fmt: skip


def test_the_message_is_what_the_events_make() -> None:
    content = Content()
    content.take(events_of(*UPDATES))
    thinking, text, weather, time = content.whole()
    assert thinking == {"type": "thinking", "thinking": "let me see", "signature": ""}
    assert text == {"type": "text", "text": "I'll look"}
    assert (weather["name"], weather["input"]) == ("weather", {"city": "Rome"})
    assert (time["name"], time["input"]) == ("time", {})
    assert weather["id"].startswith("toolu_")
    assert weather["id"] != time["id"]


def test_how_updates_are_merged_does_not_change_the_message() -> None:
    merged = update()
    for one in UPDATES:
        merged.add(one)
    together, apart = Content(), Content()
    together.take(events_of(merged))
    apart.take(events_of(*UPDATES))
    assert together.whole() == apart.whole()


def test_thinking_that_is_not_shown_is_an_empty_block() -> None:
    events = events_of(*UPDATES, shows_thinking=False)
    assert outline(events)[:3] == [(0, "thinking"), (0, "stop"), (1, "text")]


def test_a_reply_without_anything_has_no_blocks() -> None:
    assert events_of(update(finish_reason="stop")) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ('{"a": [1, 2', {"a": [1, 2]}),
        ('{"a": "b', {"a": "b"}),
        ('{"a": 1}', {"a": 1}),
        ("[1]", {}),
        ("}", {}),
    ],
)
def test_a_call_that_was_cut_off_has_the_input_that_there_is(arguments: str, expected: dict[str, Any]) -> None:
    assert tool_input(arguments) == expected


@pytest.mark.parametrize(
    ("reason", "stop", "has_called", "expected"),
    [
        ("stop", None, False, "end_turn"),
        ("stop", "END", False, "stop_sequence"),
        ("stop", None, True, "tool_use"),
        ("length", None, False, "max_tokens"),
        ("length", None, True, "max_tokens"),
    ],
)
def test_the_reason_of_the_end_is_in_anthropic_s_words(
    reason: str, stop: str | None, has_called: bool, expected: str
) -> None:
    assert stop_reason(reason, stop, has_called) == expected


def read(stream: bytes) -> list[dict[str, Any]]:
    bodies = []
    for text in stream.decode().removesuffix("\n\n").split("\n\n"):
        kind, data = text.split("\n")
        bodies.append(orjson.loads(data.removeprefix("data: ")))
        assert kind == f"event: {bodies[-1]['type']}"
    return bodies


def test_a_stream_begins_with_the_message_and_ends_with_its_usage() -> None:
    events = MessageEvents(id="msg_1", model="m", created=0, choices=1, include_usage=True)
    stream = events.opening() + b"".join(map(events.update, UPDATES)) + events.ending(USAGE)
    start, *blocks, delta, stop = read(stream)
    assert start["message"]["id"] == "msg_1"
    assert start["message"]["content"] == []
    assert blocks == events_of(*UPDATES)
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"] == usage_of(USAGE)
    assert stop == {"type": "message_stop"}


def test_cached_tokens_stand_beside_those_of_the_input() -> None:
    usage = usage_of(USAGE)
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (6, 4, 5)
    assert usage["output_tokens_details"] == {"thinking_tokens": 2}


def test_a_silent_stream_is_kept_alive_by_pings() -> None:
    assert read(MessageEvents.KEEP_ALIVE) == [{"type": "ping"}]


def test_an_error_in_mid_stream_is_an_event_of_its_own() -> None:
    events = MessageEvents(id="msg_1", model="m")
    assert read(events.error(NoWorkers("gone"))) == [
        {"type": "error", "error": {"type": "overloaded_error", "message": "gone"}}
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (InvalidApiKey("x"), "authentication_error"),
        (ModelNotFound("x"), "not_found_error"),
        (BodyTooLarge("x"), "request_too_large"),
        (QueueFull("x"), "rate_limit_error"),
        (EngineFailed("x"), "api_error"),
        (NoWorkers("x"), "overloaded_error"),
        (DeadlineExceeded("x"), "timeout_error"),
    ],
)
def test_each_status_has_its_type(error: TokenbusError, kind: str) -> None:
    expected = {"type": "error", "error": {"type": kind, "message": "x"}, "request_id": "req-1"}
    assert error_body(error, "req-1") == expected


@pytest.mark.parametrize(
    ("param", "told"),
    [
        (None, "is wrong"),
        ("messages", "messages: is wrong"),
        ("reasoning_effort", "thinking: is wrong"),
        ("response_format", "output_config: is wrong"),
    ],
)
def test_the_message_names_what_is_to_blame(param: str | None, told: str) -> None:
    assert error_body(InvalidRequest("is wrong", param=param))["error"]["message"] == told


def test_what_is_named_already_is_not_named_twice() -> None:
    said = "Invalid value for 'messages.0.role': no such role"
    assert error_body(InvalidRequest(said, param="messages"))["error"]["message"] == said


@pytest.mark.parametrize(
    ("path", "speaks"),
    [("/v1/messages", True), ("/v1/messages/count_tokens", True), ("/v1/messagesx", False), ("/v1/models", False)],
)
def test_the_path_tells_whose_errors_are_meant(path: str, speaks: bool) -> None:
    assert speaks_anthropic(path) is speaks
