"""Chunks from byte templates are the JSON that OpenAI's clients expect."""

from typing import Any

import orjson
import pytest

from gateway.inflight import Update
from gateway.templates import ChunkTemplate
from shared.messages import Usage


def parse(chunks: bytes) -> list[dict[str, Any]]:
    lines = chunks.split(b"\n\n")
    assert lines.pop() == b""
    return [orjson.loads(line.removeprefix(b"data: ")) for line in lines]


def template(*, chat: bool, include_usage: bool = False) -> ChunkTemplate:
    return ChunkTemplate(chat=chat, id="x-1", created=5, model='a "b" 50%d', choices=2, include_usage=include_usage)


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
    (chunk,) = parse(template(chat=True).role(0))
    assert chunk["choices"][0]["delta"] == {"role": "assistant", "content": ""}


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
