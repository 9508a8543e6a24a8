"""The openai SDK on a small model that is held to what was asked of it."""

import json
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.e2e.conftest import CHAT, EMBEDDINGS, sdk
from tests.processes import Stack

pytestmark = pytest.mark.model

ASKED: list[Any] = [{"role": "user", "content": "Is the Colosseum in Rome?"}]
SHORT: dict[str, Any] = {"model": CHAT, "messages": ASKED, "temperature": 0, "max_tokens": 60}


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]
    open: bool


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Rome", "Oslo"]


class Clock(BaseModel):
    """The time."""

    zone: Literal["UTC", "CET"]


WEATHER, CLOCK = openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)


@pytest.fixture
def client(model_openai: OpenAI) -> OpenAI:
    return model_openai


def test_parse_gives_the_model_s_object(client: OpenAI) -> None:
    reply = client.chat.completions.parse(**SHORT, response_format=Place)
    assert isinstance(reply.choices[0].message.parsed, Place)


def test_a_stream_parses_to_the_same_object(client: OpenAI) -> None:
    with client.chat.completions.stream(**SHORT, response_format=Place) as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Place)
    assert (seen.count("content.done"), seen[0]) == (1, "chunk")


def test_what_is_cut_off_is_told_to_be(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**SHORT | {"max_tokens": 2}, response_format=Place)


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "Clock"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "Clock"}}]},
        },
    ],
    ids=["required", "named", "allowed"],
)
def test_a_forced_call_is_parsed(client: OpenAI, choice: Any) -> None:
    asked = {**SHORT, "tools": [WEATHER, CLOCK], "tool_choice": choice, "parallel_tool_calls": False}
    reply = client.chat.completions.parse(**asked)
    (call,) = reply.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, (Weather, Clock) if choice == "required" else Clock)
    assert reply.choices[0].finish_reason == "tool_calls"


def test_a_streamed_call_is_the_whole_call(client: OpenAI) -> None:
    asked = {**SHORT, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    for reply in (whole, final):
        (call,) = reply.choices[0].message.tool_calls or ()
        assert set(json.loads(call.function.arguments)) == {"city"}
    message = final.choices[0].message
    (call,) = message.tool_calls or ()
    answered = [*ASKED, message, {"role": "tool", "tool_call_id": call.id, "content": "cold"}]
    after = client.chat.completions.create(**asked | {"messages": answered, "tool_choice": "none", "max_tokens": 2})
    assert after.choices[0].message.tool_calls is None


def test_calls_beside_each_other_are_joined_each_for_itself(scripted: Stack) -> None:
    said = [
        {"text": "I look."},
        {"tool_calls": [{"index": 0, "name": "Weather", "arguments": '{"ci'}]},
        {"tool_calls": [{"index": 0, "arguments": 'ty": "Rome"}'}, {"index": 1, "name": "Clock", "arguments": "{"}]},
        {"tool_calls": [{"index": 1, "arguments": '"zone": "UTC"}'}]},
    ]
    messages: list[Any] = [{"role": "user", "content": json.dumps(said)}]
    with (
        OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client,
        client.chat.completions.stream(model="echo", messages=messages, tools=[WEATHER, CLOCK]) as stream,
    ):
        message = stream.get_final_completion().choices[0].message
    assert message.content == "I look."
    calls = [call.function.parsed_arguments for call in message.tool_calls or ()]
    assert calls == [Weather(city="Rome"), Clock(zone="UTC")]
    assert len({call.id for call in message.tool_calls or ()}) == 2


def test_choices_seeds_and_logprobs(client: OpenAI) -> None:
    warm = SHORT | {"temperature": 1.5, "max_tokens": 6, "n": 2, "logprobs": True, "top_logprobs": 2}

    def say(seed: int) -> list[str | None]:
        choices = client.chat.completions.create(**warm, seed=seed).choices
        for choice in choices:
            assert choice.logprobs is not None
            assert [len(token.top_logprobs) for token in choice.logprobs.content or ()] == [2] * 6
        return [choice.message.content for choice in choices]

    assert say(1) == say(1) != say(2)


def test_embeddings_are_the_same_in_both_encodings(client: OpenAI) -> None:
    packed = client.embeddings.create(model=EMBEDDINGS, input=["one", "two"])
    plain = client.embeddings.create(model=EMBEDDINGS, input=["one", "two"], encoding_format="float")
    assert len(packed.data) == 2
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)


async def test_the_asynchronous_client_has_all_of_it(model_stack: Stack) -> None:
    async with sdk(model_stack) as client:
        async with client.chat.completions.stream(**SHORT, response_format=Place) as stream:
            final = await stream.get_final_completion()
        assert isinstance(final.choices[0].message.parsed, Place)
        assert {model.id async for model in client.models.list()} >= {CHAT, EMBEDDINGS}
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**SHORT | {"model": "nobody"})
