"""Chat completions as the openai SDK sees them."""

import httpx2
import openai as sdk_module
import pytest
from openai import OpenAI

from tests.e2e.conftest import CHAT
from tests.e2e.wire import chat, cycle, post, stream
from tests.processes import Stack

SAID = [{"role": "user", "content": "one two three"}]


def test_a_reply_has_the_shape_of_openais(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(model="echo", messages=SAID, max_tokens=5)
    assert reply.id.startswith("chatcmpl-")
    assert (reply.object, reply.model) == ("chat.completion", "echo")
    assert reply.created > 1_700_000_000
    (choice,) = reply.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "one two three one two")
    assert choice.message.refusal is None
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (3, 5, 8)


def test_a_stream_says_the_role_first_then_the_text_then_one_finish(openai: OpenAI) -> None:
    chunks = list(openai.chat.completions.create(model="parrot", messages=SAID, max_tokens=40, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == cycle("one two three", 40)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert {(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "parrot", "chat.completion.chunk")
    }
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_gives_its_usage_last_if_asked(openai: OpenAI) -> None:
    chunks = list(
        openai.chat.completions.create(
            model="echo", messages=SAID, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 7)
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks[:-1])


async def test_a_stream_ends_with_done_and_cannot_be_cached(echo_stack: Stack) -> None:
    assert (await stream(echo_stack, chat("a b", max_tokens=3))).done
    response = post(echo_stack, "/v1/chat/completions", chat("a b", max_tokens=3, stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


def test_n_choices_share_one_prompt(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(model="echo", messages=SAID, max_tokens=4, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"one two three one"}
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 12)


async def test_n_choices_stream_each_under_its_index(echo_stack: Stack) -> None:
    streamed = await stream(echo_stack, chat("a b c", max_tokens=20, n=4, stream_options={"include_usage": True}))
    for index in range(4):
        assert streamed.text(index) == cycle("a b c", 20)
        assert streamed.choices(index)[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in streamed.choices(index) if c["finish_reason"]] == ["length"]
    assert streamed.chunks[-1]["usage"]["completion_tokens"] == 80


@pytest.mark.parametrize("stop", ["three", ["nowhere", "three"], "wo three on"])
def test_a_stop_string_ends_the_reply_and_is_not_in_it(openai: OpenAI, stop: str | list[str]) -> None:
    whole = openai.chat.completions.create(model="echo", messages=SAID, max_tokens=50, stop=stop)
    chunks = openai.chat.completions.create(model="echo", messages=SAID, max_tokens=50, stop=stop, stream=True)
    expected = "one t" if stop == "wo three on" else "one two "
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_text_held_back_for_a_stop_string_is_released_at_the_end(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(model="echo", messages=SAID, max_tokens=3, stop="three four")
    assert reply.choices[0].message.content == "one two three"


@pytest.mark.parametrize("none", [None, []])
def test_a_stop_of_null_or_an_empty_list_is_none(openai: OpenAI, none: list[str] | None) -> None:
    reply = openai.chat.completions.create(model="echo", messages=SAID, max_tokens=4, stop=none)
    assert reply.choices[0].finish_reason == "length"


def test_max_completion_tokens_limits_like_max_tokens(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(model="echo", messages=SAID, max_completion_tokens=2)
    assert reply.choices[0].message.content == "one two"


def test_without_a_limit_a_reply_may_fill_the_context(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(model="echo", messages=SAID)
    assert reply.usage is not None
    assert (reply.choices[0].finish_reason, reply.usage.total_tokens) == ("length", 8192)


def test_a_prompt_beyond_the_context_is_a_bad_request_also_when_streaming(openai: OpenAI) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    for streaming in (False, True):
        with pytest.raises(sdk_module.BadRequestError) as caught:
            openai.chat.completions.create(model="echo", messages=long, stream=streaming)
        assert caught.value.code == "context_length_exceeded"
        assert "maximum context length" in str(caught.value)


def test_text_parts_and_all_roles_are_read(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(
        model="echo",
        max_tokens=4,
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
            {"role": "user", "content": "what", "name": "ann"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "42"},
            {"role": "user", "content": [{"type": "text", "text": "last"}, {"type": "text", "text": "word"}]},
        ],
    )
    assert reply.choices[0].message.content == "last word last word"


def test_errors_are_the_sdks_exceptions(openai: OpenAI) -> None:
    with pytest.raises(sdk_module.NotFoundError) as missing:
        openai.chat.completions.create(model="nobody", messages=SAID)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert missing.value.request_id
    with pytest.raises(sdk_module.BadRequestError) as bad:
        openai.chat.completions.create(model="echo", messages=SAID, temperature=3)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")


def test_the_request_id_of_the_client_comes_back(openai: OpenAI) -> None:
    create = openai.chat.completions.with_raw_response.create
    given = create(model="echo", messages=SAID, max_tokens=1, extra_headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = {create(model="echo", messages=SAID, max_tokens=1).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.model
def test_a_seed_repeats_and_another_differs(model_openai: OpenAI) -> None:
    def say(seed: int | None, temperature: float = 1.5) -> str | None:
        reply = model_openai.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "Tell me of the sea."}], max_tokens=12, seed=seed,
            temperature=temperature,
        )  # fmt: skip
        return reply.choices[0].message.content

    assert say(1) == say(1)
    assert say(1) != say(2)
    assert say(None) != say(None)
    assert say(None, 0) == say(7, 0)


@pytest.mark.model
def test_choices_of_one_seed_differ_and_repeat(model_openai: OpenAI) -> None:
    def say() -> list[str | None]:
        reply = model_openai.chat.completions.create(
            model="smol", messages=[{"role": "user", "content": "Name a bird."}], max_tokens=8, seed=5, n=3,
            temperature=1.5,
        )  # fmt: skip
        return [choice.message.content for choice in reply.choices]

    first = say()
    assert len(set(first)) == 3
    assert say() == first


@pytest.mark.model
def test_what_was_computed_of_a_conversation_is_counted_as_cached(model_openai: OpenAI, model_stack: Stack) -> None:
    def cached_total() -> float:
        lines = httpx2.get(f"{model_stack.url}/metrics").text.splitlines()
        return sum(float(one.split()[1]) for one in lines if one.startswith("tokenbus_prompt_tokens_cached_total{"))

    before, messages = cached_total(), [{"role": "user", "content": "Name five seas, and a port of each of them."}]
    usages = []
    for _ in range(2):
        reply = model_openai.chat.completions.create(model=CHAT, messages=messages, max_tokens=20, temperature=0)
        usages.append(reply.usage)
        messages += [reply.choices[0].message.model_dump(), {"role": "user", "content": "And lakes?"}]
    first, second = usages
    assert second.prompt_tokens > second.prompt_tokens_details.cached_tokens > first.prompt_tokens
    counted = first.prompt_tokens_details.cached_tokens + second.prompt_tokens_details.cached_tokens
    assert cached_total() - before == counted


@pytest.mark.model
def test_a_streamed_reply_is_the_whole_reply(model_openai: OpenAI) -> None:
    messages = [{"role": "user", "content": "Say something in Chinese and an emoji: 你好 🎉"}]
    options = {"model": CHAT, "messages": messages, "max_tokens": 40, "temperature": 1.8, "seed": 11}
    whole = model_openai.chat.completions.create(**options)
    chunks = model_openai.chat.completions.create(**options, stream=True)
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(parts) == whole.choices[0].message.content
    assert len([part for part in parts if part]) > 5


@pytest.mark.model
@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 5e-324},
        {"top_p": 5e-324},
        {"min_p": 1.0},
        {"top_k": 2**64 - 1},
        {"top_k": -1},
        {"repetition_penalty": 0.01, "temperature": 1e-38},
        {"repetition_penalty": 10},
        {"presence_penalty": -2, "frequency_penalty": -2, "temperature": 2},
        {"seed": -(2**63)},
        {"seed": 2**64 - 1},
    ],
    ids=str,
)
def test_the_ends_of_every_range_are_sampled(model_stack: Stack, extreme: dict[str, float]) -> None:
    body = {"model": CHAT, "messages": SAID, "max_tokens": 3, **extreme}
    response = post(model_stack, "/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] >= 1
