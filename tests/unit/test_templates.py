"""Chunks from byte templates are the JSON that OpenAI's clients expect."""

from typing import Any

import orjson
import pytest

from gateway.chat_completions import ChatChunks
from gateway.inflight import Update
from gateway.templates import ChunkTemplate
from gateway.text_completions import CompletionChunks
from shared.messages import Logprob, TokenLogprob, ToolCallDelta, Usage


def parse(chunks: bytes) -> list[dict[str, Any]]:
    lines = chunks.split(b"\n\n")
    assert lines.pop() == b""
    return [orjson.loads(line.removeprefix(b"data: ")) for line in lines]


def template(*, chat: bool, include_usage: bool = False) -> ChunkTemplate:
    kind = ChatChunks if chat else CompletionChunks
    return kind(id="x-1", created=5, model='a "b" 50%d', choices=2, include_usage=include_usage)


def test_a_chat_chunk_carries_its_text() -> None:
    (chunk,) = parse(template(chat=True).update(Update(index=1, text='say "ü"\n')))
    assert chunk == {
        "id": "x-1",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": 'a "b" 50%d',
        "choices": [{"index": 1, "delta": {"content": 'say "ü"\n'}, "logprobs": None, "finish_reason": None}],
    }


def test_the_first_chunk_of_a_choice_gives_the_role() -> None:
    chunks = parse(template(chat=True).opening())
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1]
    assert all(chunk["choices"][0]["delta"] == {"role": "assistant", "content": ""} for chunk in chunks)
    assert template(chat=False).opening() == b""


@pytest.mark.parametrize("chat", [True, False])
def test_text_and_finish_are_two_chunks_in_that_order(chat: bool) -> None:
    last = Update(index=0, text="end", finish_reason="stop", usage=Usage(1, 1))
    text, finish = parse(template(chat=chat).update(last))
    assert text["choices"][0]["finish_reason"] is None
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert finish["choices"][0].get("delta", {}) == {}


def test_an_update_without_text_is_no_chunk() -> None:
    assert template(chat=True).update(Update(index=0)) == b""


def test_usage_comes_last_and_only_when_asked_for() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert template(chat=True).usage(usage) == b""
    asked = template(chat=True, include_usage=True)
    (chunk,) = parse(asked.usage(usage))
    assert chunk["choices"] == []
    assert chunk["usage"] == usage
    (text,) = parse(asked.update(Update(index=0, text="a")))
    assert text["usage"] is None


def choices(chunks: bytes) -> list[dict[str, Any]]:
    return [chunk["choices"][0] for chunk in parse(chunks)]


def test_a_tool_call_is_named_once_and_its_arguments_come_in_pieces() -> None:
    chat = template(chat=True)
    first = Update(index=0, text="Let me see.", tool_calls=[ToolCallDelta(0, "add", '{"a"')])
    text, begun = choices(chat.update(first))
    assert text["delta"] == {"content": "Let me see."}
    (call,) = begun["delta"]["tool_calls"]
    assert (call["index"], call["type"], call["function"]) == (0, "function", {"name": "add", "arguments": '{"a"'})
    assert call["id"].startswith("call_")
    (more,) = choices(chat.update(Update(index=0, tool_calls=[ToolCallDelta(0, arguments=":1}")])))
    assert more["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": ":1}"}}]
    (finish,) = choices(chat.update(Update(index=0, finish_reason="stop", usage=Usage(1, 1))))
    assert finish["finish_reason"] == "tool_calls"
    (other,) = choices(chat.update(Update(index=1, finish_reason="stop", usage=Usage(1, 1))))
    assert other["finish_reason"] == "stop"


def test_reasoning_comes_in_a_field_of_its_own_and_before_the_text() -> None:
    thought, said = choices(template(chat=True).update(Update(index=0, text="4", reasoning="2 + 2")))
    assert (thought["delta"], said["delta"]) == ({"reasoning_content": "2 + 2"}, {"content": "4"})


HALF = TokenLogprob("\ufffd", -2.0, [0xC3], [Logprob("\ufffd", -2.0, [0xC3]), Logprob("\ufffd", -3.0, [0xC2])])


def test_every_token_has_its_logprobs_even_if_its_text_is_held_back() -> None:
    (chunk,) = choices(template(chat=True).update(Update(index=0, token_ids=[5], logprobs=[HALF])))
    assert chunk["delta"] == {"content": ""}
    (entry,) = chunk["logprobs"]["content"]
    assert entry["bytes"] == [0xC3]
    assert [other["bytes"] for other in entry["top_logprobs"]] == [[0xC3], [0xC2]]


def test_logprobs_come_once_where_an_update_makes_several_chunks() -> None:
    update = Update(index=0, text="b", reasoning="a", logprobs=[TokenLogprob("a", -1.0), TokenLogprob("b", -1.0)])
    first, second = choices(template(chat=True).update(update))
    assert [entry["token"] for entry in first["logprobs"]["content"]] == ["a", "b"]
    assert first["logprobs"]["content"][0]["top_logprobs"] == []
    assert second["logprobs"] is None


def test_the_offsets_of_completion_logprobs_go_on_from_chunk_to_chunk() -> None:
    chunks = template(chat=False)
    prompt = [TokenLogprob("Hé", None), TokenLogprob(" you", -1.0, top=[Logprob(" me", -0.5)])]
    first = Update(index=0, text="Hé you", prompt_logprobs=prompt, logprobs=[HALF])
    second = Update(index=0, text="é!", logprobs=[TokenLogprob("\ufffd", -1.0, [0xA9]), TokenLogprob("!", -1.0)])
    (one,), (two,) = choices(chunks.update(first)), choices(chunks.update(second))
    assert one["logprobs"]["tokens"] == ["Hé", " you", "bytes:\\xc3"]
    assert one["logprobs"]["token_logprobs"] == [None, -1.0, -2.0]
    assert one["logprobs"]["top_logprobs"][:2] == [None, {" me": -0.5, " you": -1.0}]
    assert one["logprobs"]["text_offset"] + two["logprobs"]["text_offset"] == [0, 2, 6, 6, 7]
