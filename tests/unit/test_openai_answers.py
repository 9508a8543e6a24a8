"""What is read of another server's answers, and what is not."""

import json
from typing import Any

import pytest

from shared.errors import EngineFailed, TokenbusError, UpstreamFailed
from shared.messages import SamplingParams, ToolCallDelta, Usage, add_calls
from worker.engines.base import EngineRequest, Output
from worker.engines.logprobs import LEAST
from worker.engines.openai_answers import Reply, embedded, ranked, refused

FLOATS = "AACAPwAAAEA="  # 1.0, 2.0


def request(kind: Any = "chat", **payload: Any) -> EngineRequest:
    return EngineRequest("r", kind, payload, SamplingParams(seed=1))


def chunk(delta: Any = None, **choice: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta or {}, **choice}]}).encode()


def read(*chunks: bytes, kind: Any = "chat") -> tuple[Output, Output]:
    """All that they make, and the end."""
    reply, whole = Reply(request(kind)), Output(id="r")
    for one in chunks:
        if (output := reply.take(one)) is not None:
            whole.add(output)
    return whole, reply.end()


END = chunk(finish_reason="stop")


@pytest.mark.parametrize(
    ("delta", "text", "reasoning"),
    [
        ({"content": "a", "reasoning_content": "b"}, "a", "b"),
        ({"content": None, "reasoning": "b"}, "", "b"),
        ({"content": "a", "reasoning": {"steps": []}, "refusal": 7}, "a", ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image", "url": "x"}, {"text": "b"}]}, "ab", ""),
    ],
)
def test_what_is_said_and_thought(delta: Any, text: str, reasoning: str) -> None:
    whole, _ = read(chunk(delta), END)
    assert (whole.text, whole.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        b"[]",
        rb'{"choices": [{"delta": {"content": "\ud83d"}}]}',
        rb'{"choices": [{"delta": {"content": "\ude00 late"}}]}',
        chunk({"content": 5}),
        chunk({"content": {"text": "a"}}),
        chunk({"tool_calls": [{"index": "0", "function": {"name": "f"}}]}),
        chunk({"content": "a"}, logprobs={"content": [{"token": 5, "logprob": 0.0}]}),
        b'{"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": -Infinity}]}}]}',
        b'{"choices": [], "usage": {"completion_tokens": "5"}}',
        b'{"choices": {"0": {}}}',
        chunk(finish_reason=3),
    ],
)
def test_what_is_of_another_type_is_that_request_s_failure(data: bytes) -> None:
    with pytest.raises(UpstreamFailed, match="cannot be read"):
        read(chunk({"content": "a"}), data)


def test_other_choices_are_not_its() -> None:
    other = json.dumps({"choices": [{"index": 1, "delta": {"content": "B"}, "finish_reason": "length"}]}).encode()
    whole, end = read(other, chunk({"content": "A"}), other, END)
    assert (whole.text, end.finish_reason) == ("A", "stop")


CALLS: dict[str, list[list[dict[str, Any]]]] = {
    "numbered": [
        [{"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 0, "function": {"arguments": "1}"}}, {"index": 1, "function": {"name": "g", "arguments": "{}"}}],
    ],
    "by ids": [
        [{"id": "x", "function": {"name": "f", "arguments": '{"a":'}}],
        [{"id": "x", "function": {"arguments": "1}"}}],
        [{"id": "y", "function": {"name": "g", "arguments": "{}"}}],
    ],
    "by names": [
        [{"function": {"name": "f", "arguments": '{"a":1}'}}, {"function": {"name": "g", "arguments": "{}"}}],
    ],
    "as objects": [[{"function": {"name": "f", "arguments": {"a": 1}}}], [{"function": {"name": "g"}}]],
}


@pytest.mark.parametrize("how", CALLS)
def test_calls_are_told_apart(how: str) -> None:
    whole, _ = read(*(chunk({"tool_calls": calls}) for calls in CALLS[how]), END)
    calls: list[ToolCallDelta] = []
    add_calls(calls, whole.tool_calls)
    assert [(call.index, call.name, call.arguments or "{}") for call in calls] == [(0, "f", '{"a":1}'), (1, "g", "{}")]


def test_logprobs_stay_within_what_can_be_told() -> None:
    top = [{"token": "b", "logprob": None}, {"token": "c", "logprob": -1e30}]
    told = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": top}]}
    whole, _ = read(chunk({"content": "a"}, logprobs=told), END)
    (token,) = whole.logprobs
    assert (token.token, token.logprob) == ("a", -0.5)
    assert [(one.token, one.logprob) for one in token.top] == [("b", LEAST), ("c", LEAST)]


def test_logprobs_of_a_completion() -> None:
    told = {"tokens": ["a", "b"], "token_logprobs": [None, -1], "top_logprobs": [None, {"b": -1, "c": -2}]}
    data = json.dumps({"choices": [{"text": "ab", "logprobs": told, "finish_reason": "length"}]}).encode()
    whole, end = read(data, kind="completion")
    assert [(token.token, token.logprob, len(token.top)) for token in whole.logprobs] == [("a", None, 0), ("b", -1, 2)]
    assert end.finish_reason == "length"
    told["token_logprobs"] = [None]
    with pytest.raises(UpstreamFailed):
        read(json.dumps({"choices": [{"text": "ab", "logprobs": told}]}).encode(), kind="completion")


def test_usage_is_the_upstream_s_or_counts_its_pieces() -> None:
    told = {"prompt_tokens": 3.0, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": None}}
    data = json.dumps({"choices": [], "usage": told}).encode()
    assert read(chunk({"content": "a"}), END, data)[1].usage == Usage(3, 7)
    assert read(chunk({"content": "a"}), chunk({"content": "b"}), END)[1].usage == Usage(0, 2)


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ((), UpstreamFailed),
        ((chunk({"content": "a"}),), EngineFailed),
        ((chunk({"content": "a"}), chunk(finish_reason="abort")), EngineFailed),
        ((b'{"error": {"message": "no"}}',), EngineFailed),
        ((b'{"error": "no"}',), EngineFailed),
    ],
    ids=["nothing", "it breaks off", "it gives up", "an error", "an error in a word"],
)
def test_a_reply_that_is_not_whole_is_no_reply(chunks: tuple[bytes, ...], kind: type[TokenbusError]) -> None:
    with pytest.raises(kind):
        read(*chunks)


def test_embeddings_are_in_the_order_of_the_inputs() -> None:
    rows = [{"index": 1, "embedding": FLOATS}, {"index": 0, "embedding": [1, 2.0]}]
    output = embedded(request("embedding", inputs=["a", "b"]), {"data": rows, "usage": {"total_tokens": 4}})
    assert output.embeddings == [FLOATS, FLOATS]
    assert output.usage == Usage(4, 0)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"data": [{"index": 0, "embedding": FLOATS}]},
        {"data": [{"index": 0, "embedding": FLOATS}] * 2},
        {"data": [{"index": 0, "embedding": FLOATS}, {"index": 5, "embedding": FLOATS}]},
        {"data": [{"index": 0, "embedding": FLOATS}, {"index": 1, "embedding": ""}]},
        {"data": [{"index": 0, "embedding": FLOATS}, {"index": 1, "embedding": "AACAPw="}]},
        {"data": [{"index": 0, "embedding": FLOATS}, {"index": 1, "embedding": "AACA"}]},
        {"data": [{"index": 0, "embedding": FLOATS}, {"index": 1, "embedding": [None]}]},
        {"data": [{"index": place, "embedding": FLOATS} for place in (0, 1)], "usage": [1]},
        {"data": [{"index": place, "embedding": FLOATS} for place in (0, 1, 2)]},
    ],
)
def test_what_is_not_one_embedding_for_each_input_is_refused(answer: Any) -> None:
    with pytest.raises(UpstreamFailed):
        embedded(request("embedding", inputs=["a", "b"]), answer)


def test_a_ranking_has_a_score_for_each_document() -> None:
    rows = [{"index": 1, "relevance_score": 2}, {"index": 0, "relevance_score": 0.5, "document": {}}]
    asked = request("rerank", query="q", documents=["a", "b"])
    assert ranked(asked, {"results": rows}).result == {"scores": [0.5, 2.0]}
    for results in (rows[:1], [{"index": 0, "relevance_score": "high"}, rows[0]], None):
        with pytest.raises(UpstreamFailed):
            ranked(asked, {"results": results})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"error": {"message": "m", "param": "p", "code": "c"}}', ("m", "p", "c")),
        (b'{"message": "m", "code": 400}', ("m", None, None)),
        (b'{"error": "m"}', ("m", None, None)),
        (rb'{"error": {"message": "\ud83d"}}', ("", None, None)),
        (b"<html>", ("", None, None)),
        (b"", ("", None, None)),
    ],
)
def test_what_an_error_says(data: bytes, told: tuple[str, str | None, str | None]) -> None:
    assert refused(data) == told
