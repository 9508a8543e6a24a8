"""Items of the Responses API as chat messages, and as they are stored."""

from typing import Any

import pytest

from gateway.inflight import Update
from gateway.responses.items import conversation, read_items, stored_items
from gateway.responses.output import OutputItems, beginning, ended, pieces_of, so_far
from shared.messages import End, ToolCallDelta, Usage

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "4"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}


def said(text: str, role: str = "assistant") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "output_text", "text": text}]}


def messages(*items: Any, instructions: str | None = None) -> list[dict[str, Any]]:
    return conversation(instructions, read_items(list(items)))  # type: ignore[arg-type]


def test_instructions_come_first_and_roles_are_kept() -> None:
    items = [{"role": role, "content": "x"} for role in ("developer", "system", "user")]
    assert [message["role"] for message in messages(*items, instructions="be brief")] == [
        *("system", "developer", "system", "user")
    ]


def test_what_the_assistant_made_in_one_turn_is_one_message() -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
    assert messages(THOUGHT, said("let me see"), CALL, OUTPUT, said("4")) == [
        {"role": "assistant", "content": "let me see", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "content": "4"},
    ]


def test_two_messages_of_the_assistant_stay_two() -> None:
    assert [message["content"] for message in messages(said("a"), said("b"))] == ["a", "b"]
    assert [message["content"] for message in messages(CALL, said("b"))] == ["", "b"]


def test_a_thought_without_content_is_told_by_its_summary() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "in short"}]}
    assert messages(item)[0]["reasoning_content"] == "in short"


def test_parts_of_a_message_are_lines() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    assert messages({"role": "user", "content": parts})[0]["content"] == "a\nb"


def test_the_output_of_no_call_is_refused() -> None:
    with pytest.raises(ValueError, match="call_id c1"):
        messages(OUTPUT)


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ({"type": "mcp_call"}, "items of type 'mcp_call'"),
        ({"role": "tool", "content": "x"}, "role"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "parts of type 'input_image'"),
        ({"type": "function_call_output", "call_id": "x", "output": [{"type": "input_file"}]}, "'input_file'"),
        ({"type": "function_call", "call_id": "", "name": "f", "arguments": ""}, "call_id"),
        ({"type": ["message"]}, "items of type"),
        (CALL | {"namespace": "n"}, "namespace"),
        (CALL | {"weight": 1}, "weight"),
        (THOUGHT | {"encrypted_content": "abc"}, "encrypted_content"),
        ({"role": "user", "content": [{"type": "input_text", "text": "x", "weight": 1}]}, "weight"),
        ({"id": "msg_1", "weight": 1}, "weight"),
        (3, "object"),
        ({}, "id"),
    ],
)
def test_what_is_no_item_is_told_in_one_line(item: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        read_items([item])
    assert "\n" not in str(raised.value)


def test_stored_items_have_ids_and_read_as_what_they_were() -> None:
    items = read_items([{"role": "user", "content": "x"}, said("y"), THOUGHT, CALL, OUTPUT])
    stored = stored_items(items, "ab")  # type: ignore[arg-type]
    assert [item["id"] for item in stored] == ["msg_ab_i0", "msg_ab_i1", "rs_1", "fc_ab_i3", "fco_ab_i4"]
    assert conversation(None, read_items(stored)) == conversation(None, items)  # type: ignore[arg-type]
    assert stored_items(read_items(stored), "cd") == stored  # type: ignore[arg-type]


def test_what_clients_send_back_is_stored_as_what_it_is() -> None:
    text = {"type": "output_text", "text": "y", "annotations": [], "logprobs": [], "parsed": {"a": 1}}
    sent = [
        {"type": None, "role": "assistant", "content": [text], "phase": "commentary", "status": "completed"},
        CALL | {"caller": {"type": "direct"}, "parsed_arguments": {}, "namespace": None, "status": None},
        OUTPUT | {"name": "f", "output": [{"type": "input_text", "text": "4", "prompt_cache_breakpoint": None}]},
        {"type": "reasoning", "summary": None, "encrypted_content": None},
    ]
    del text["parsed"]
    assert stored_items(read_items(sent), "ab") == [  # type: ignore[arg-type]
        {"id": "msg_ab_i0", "type": "message", "role": "assistant", "status": "completed", "content": [text]},
        CALL | {"id": "fc_ab_i1", "status": "completed"},
        OUTPUT | {"id": "fco_ab_i2", "status": "completed", "output": [{"type": "input_text", "text": "4"}]},
        {"id": "rs_ab_i3", "type": "reasoning", "summary": []},
    ]


PIECES = [
    Update(index=0, reasoning="hm"),
    Update(index=0, text="a"),
    Update(index=0, text="b", tool_calls=[ToolCallDelta(0, "f", "{")]),
    Update(index=0, tool_calls=[ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "g", "{}")]),
]
RESPONSE: dict[str, Any] = {"id": "resp_ab", "status": "queued", "background": True, "output": [], "usage": None}
END = End(reason="stop", usage=Usage(1, 2))


def test_a_response_is_queued_until_something_is_made_of_it() -> None:
    assert so_far(RESPONSE, [])["status"] == "queued"
    running = so_far(RESPONSE, PIECES[:2])
    assert (running["status"], running["output"][-1]["status"]) == ("in_progress", "in_progress")
    assert [item["type"] for item in running["output"]] == ["reasoning", "message"]


def test_a_response_knows_its_beginning() -> None:
    whole = ended(RESPONSE, PIECES, END)
    assert whole["status"] == "completed"
    assert beginning(whole) == RESPONSE | {"error": None, "incomplete_details": None}


def test_what_a_response_holds_can_be_told_again() -> None:
    whole = ended(RESPONSE, PIECES, END)
    again = [Update(index=0, text=one.text, reasoning=one.reasoning) for one in pieces_of(whole["output"])]
    for update, piece in zip(again, pieces_of(whole["output"]), strict=True):
        update.tool_calls = piece.tool_calls
    assert ended(RESPONSE, again, END) == whole


@pytest.mark.parametrize("code", ["cancelled", "worker_lost"])
def test_what_was_made_before_a_failure_is_kept_and_incomplete(code: str) -> None:
    whole = ended(RESPONSE, PIECES[:2], End(code=code, message="why"))
    assert whole["status"] == ("cancelled" if code == "cancelled" else "failed")
    assert [item["status"] for item in whole["output"]] == ["completed", "incomplete"]
    assert whole["usage"] is None


def test_every_item_that_is_opened_is_closed_before_the_next() -> None:
    items, open_items = OutputItems("resp_ab"), 0
    events = [event for piece in PIECES for event in items.take(piece)] + list(items.end("completed"))
    for event in events:
        open_items += {"response.output_item.added": 1, "response.output_item.done": -1}.get(event["type"], 0)
        assert open_items in (0, 1)
    assert open_items == 0
