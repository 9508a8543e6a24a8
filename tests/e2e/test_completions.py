"""Text completions."""

import openai as sdk_module
import pytest
from openai import OpenAI

from tests.e2e.conftest import CHAT
from tests.e2e.wire import cycle, error_of, post, stream
from tests.processes import Stack


def test_a_completion_has_the_shape_of_openais(openai: OpenAI) -> None:
    reply = openai.completions.create(model="echo", prompt="a b c", max_tokens=4)
    assert reply.id.startswith("cmpl-")
    assert reply.object == "text_completion"
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("a b c a", "length")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 4)


def test_the_default_is_sixteen_tokens(openai: OpenAI) -> None:
    reply = openai.completions.create(model="echo", prompt="a")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 16


def test_a_list_of_prompts_is_answered_in_order_with_n_choices_each(openai: OpenAI) -> None:
    reply = openai.completions.create(model="echo", prompt=["a b", "c d"], max_tokens=3, n=2)
    assert [(choice.index, choice.text) for choice in reply.choices] == [
        (0, "a b a"), (1, "a b a"), (2, "c d c"), (3, "c d c"),
    ]  # fmt: skip
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 12)


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3], [4]]])
def test_token_ids_are_prompts(openai: OpenAI, prompt: list[int]) -> None:
    assert openai.completions.create(model="echo", prompt=prompt, max_tokens=2).choices[0].text == "1 2"


async def test_a_stream_ends_with_one_finish_the_usage_and_done(echo_stack: Stack) -> None:
    body = {"model": "echo", "prompt": "a b c", "max_tokens": 30, "stream_options": {"include_usage": True}}
    streamed = await stream(echo_stack, body, "/v1/completions")
    assert streamed.text() == cycle("a b c", 30)
    assert streamed.finish_reasons == ["length"]
    assert streamed.chunks[-1]["usage"]["total_tokens"] == 33
    assert streamed.done


def test_a_request_is_not_a_flood_of_jobs(echo_stack: Stack) -> None:
    flood = {"model": "echo", "prompt": ["a"] * 2000, "n": 128, "max_tokens": 1}
    response = post(echo_stack, "/v1/completions", flood)
    assert response.status_code == 400
    assert error_of(response)["param"] in ("prompt", "n", None)


@pytest.mark.model
def test_an_embedding_model_does_not_complete(model_openai: OpenAI) -> None:
    with pytest.raises(sdk_module.BadRequestError) as caught:
        model_openai.completions.create(model="all-minilm-l6-v2", prompt="a")
    assert caught.value.code == "unsupported_model"


@pytest.mark.model
def test_an_empty_prompt_begins_from_nothing(model_openai: OpenAI) -> None:
    reply = model_openai.completions.create(model=CHAT, prompt="", max_tokens=3, temperature=0)
    assert reply.usage is not None
    assert reply.usage.completion_tokens >= 1


@pytest.mark.model
def test_a_token_id_beyond_the_vocabulary_is_a_bad_request(model_openai: OpenAI) -> None:
    for prompt in ([2**40], [[1], [2**63]]):
        with pytest.raises(sdk_module.BadRequestError):
            model_openai.completions.create(model=CHAT, prompt=prompt, max_tokens=3)
