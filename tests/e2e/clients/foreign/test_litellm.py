"""LiteLLM, by its prefix for servers like this one."""

import json
from typing import Any

import litellm
import pytest
from conftest import CHAT, ECHO, EMBEDDINGS, SCRIPTED

HI = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}


@pytest.fixture
def place(url: str, key: str) -> dict[str, Any]:
    return {"api_base": url, "api_key": key, "max_retries": 0}


def test_a_reply_comes_whole_and_streamed(place: dict[str, Any]) -> None:
    asked = {"model": f"openai/{ECHO}", "messages": HI, "max_tokens": 6, **place}
    whole = litellm.completion(**asked)
    assert (whole.choices[0].message.content, whole.usage.completion_tokens) == ("Say hello. Say hello. Say hello.", 6)
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


async def test_the_asynchronous_client_streams(place: dict[str, Any]) -> None:
    asked = {"model": f"openai/{ECHO}", "messages": HI, "max_tokens": 4, **place}
    chunks = [chunk async for chunk in await litellm.acompletion(**asked, stream=True)]
    whole = await litellm.acompletion(**asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content


def test_a_call_is_forced_and_its_arguments_fit(place: dict[str, Any]) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    asked = {"model": f"openai/{CHAT}", "messages": HI, "tools": [WEATHER], "tool_choice": choice, **place}
    reply = litellm.completion(**asked, parallel_tool_calls=False, temperature=0)
    (call,) = reply.choices[0].message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


def test_a_schema_is_kept(place: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    reply = litellm.completion(model=f"openai/{CHAT}", messages=HI, response_format=form, temperature=0, **place)
    assert json.loads(reply.choices[0].message.content)["city"] in ("Rome", "Oslo")


def test_thoughts_and_pieces_of_calls_are_put_together(place: dict[str, Any], script: Any) -> None:
    said = script(
        {"reasoning": "hm"},
        {"text": "I look."},
        {"tool_calls": [{"index": 0, "name": "weather", "arguments": '{"city"'}]},
        {"tool_calls": [{"index": 0, "arguments": ': "Rome"}'}]},
    )
    asked = {
        "model": f"openai/{SCRIPTED}",
        "messages": [{"role": "user", "content": said}],
        "tools": [WEATHER],
        **place,
    }
    whole = litellm.completion(**asked)
    built = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)))
    for reply in (whole, built):
        message = reply.choices[0].message
        assert (message.reasoning_content, message.content) == ("hm", "I look.")
        assert [call.function.arguments for call in message.tool_calls] == ['{"city": "Rome"}']
        assert reply.choices[0].finish_reason == "tool_calls"


def test_responses_are_streamed_found_again_and_forgotten(place: dict[str, Any]) -> None:
    asked = {"model": f"openai/{ECHO}", "input": "Say hello.", "max_output_tokens": 16, **place}  # it sends no less
    whole = litellm.responses(**asked)
    assert whole.output[0].content[0].text == " ".join(["Say hello."] * 8)
    events = list(litellm.responses(**asked, stream=True))
    assert "".join(getattr(event, "delta", "") for event in events) == whole.output[0].content[0].text
    again = {"custom_llm_provider": "openai", "api_base": place["api_base"], "api_key": place["api_key"]}
    assert litellm.get_responses(response_id=whole.id, **again).output == whole.output
    assert litellm.delete_responses(response_id=whole.id, **again).deleted


def test_completions_and_embeddings(place: dict[str, Any]) -> None:
    model = f"text-completion-openai/{CHAT}"
    reply = litellm.text_completion(model=model, prompt="One, two,", max_tokens=2, temperature=0, logprobs=1, **place)
    assert len(reply.choices[0].logprobs.tokens) == 2
    vectors = litellm.embedding(model=f"openai/{EMBEDDINGS}", input=["one", "two"], **place)
    assert [len(row["embedding"]) for row in vectors.data] == [384, 384]


def test_errors_are_litellm_s_own(place: dict[str, Any]) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nobody", messages=HI, **place)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model=f"openai/{ECHO}", messages=long, **place)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(model=f"openai/{ECHO}", messages=HI, **place | {"api_key": "wrong"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model=f"openai/{ECHO}", messages=HI, n=0, **place)
