"""Embeddings by the real model."""

import base64
import math
import struct

import openai as sdk_module
import pytest
from openai import OpenAI

from tests.e2e.conftest import CHAT, EMBEDDINGS
from tests.e2e.wire import error_of, post
from tests.processes import Stack

pytestmark = pytest.mark.model
DIMENSIONS = 384


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def embed(openai: OpenAI, given: object) -> list[list[float]]:
    """With the SDK's default, which asks for base64 and decodes it."""
    answer = openai.embeddings.create(model=EMBEDDINGS, input=given)  # type: ignore[arg-type]
    assert [row.index for row in answer.data] == list(range(len(answer.data)))
    return [row.embedding for row in answer.data]


def test_a_string_becomes_one_vector_of_unit_length(model_openai: OpenAI) -> None:
    answer = model_openai.embeddings.create(model=EMBEDDINGS, input="The sea is blue.")
    assert (answer.object, answer.model, len(answer.data)) == ("list", EMBEDDINGS, 1)
    vector = answer.data[0].embedding
    assert len(vector) == DIMENSIONS
    assert math.isclose(cosine(vector, vector), 1.0, abs_tol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 4


def test_like_is_near_and_unlike_is_far(model_openai: OpenAI) -> None:
    cat, kitten, tax = embed(model_openai, ["A cat sleeps.", "A kitten is asleep.", "The tax form is late."])
    assert cosine(cat, kitten) > 0.6 > 0.3 > cosine(cat, tax)


def test_more_inputs_than_a_job_holds_keep_their_order(model_openai: OpenAI) -> None:
    texts = [f"number {i} " + "word " * (i % 9) for i in range(150)]
    together = embed(model_openai, texts)
    assert len(together) == 150
    for i in (0, 63, 64, 65, 127, 128, 149):
        (alone,) = embed(model_openai, texts[i])
        assert cosine(alone, together[i]) > 0.99999


def test_float_and_base64_say_the_same(model_stack: Stack) -> None:
    def ask(encoding: str) -> list[dict[str, object]]:
        body = {"model": EMBEDDINGS, "input": ["a", "b c"], "encoding_format": encoding}
        rows: list[dict[str, object]] = post(model_stack, "/v1/embeddings", body).json()["data"]
        return rows

    for plain, packed in zip(ask("float"), ask("base64"), strict=True):
        raw = base64.b64decode(str(packed["embedding"]))
        assert plain["embedding"] == pytest.approx(list(struct.unpack(f"<{len(raw) // 4}f", raw)), abs=1e-6)


def test_token_ids_are_inputs(model_openai: OpenAI) -> None:
    one = embed(model_openai, [101, 2026, 102])
    many = embed(model_openai, [[101, 2026, 102], [101, 102]])
    assert (len(one), len(many)) == (1, 2)
    assert cosine(one[0], many[0]) > 0.99999


@pytest.mark.parametrize(
    "given",
    [None, "", [], [""], ["a", ""], [[]], [1.5], [[1.5]], ["a", 1], [-1], [2**40], [True], {"a": 1}, 3, "x " * 5000],
    ids=lambda given: repr(given)[:20],
)
def test_what_cannot_be_embedded_is_a_bad_request(model_stack: Stack, given: object) -> None:
    response = post(model_stack, "/v1/embeddings", {"model": EMBEDDINGS, "input": given})
    assert response.status_code == 400, response.text
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize("option", [{"dimensions": 0}, {"encoding_format": "int8"}, {"truncate": True}], ids=str)
def test_what_is_not_honoured_is_refused(model_stack: Stack, option: dict[str, object]) -> None:
    response = post(model_stack, "/v1/embeddings", {"model": EMBEDDINGS, "input": "a", **option})
    assert response.status_code == 400
    assert error_of(response)["param"] == next(iter(option))


def test_a_chat_model_does_not_embed_and_an_embedding_model_does_not_chat(model_openai: OpenAI) -> None:
    with pytest.raises(sdk_module.BadRequestError) as caught:
        model_openai.embeddings.create(model=CHAT, input="a")
    assert caught.value.code == "unsupported_model"
    with pytest.raises(sdk_module.BadRequestError) as caught:
        model_openai.chat.completions.create(model=EMBEDDINGS, messages=[{"role": "user", "content": "a"}])
    assert caught.value.code == "unsupported_model"


def test_fewer_dimensions_have_unit_length_too(model_openai: OpenAI) -> None:
    whole = embed(model_openai, "The sea is blue.")[0]
    answer = model_openai.embeddings.create(model=EMBEDDINGS, input="The sea is blue.", dimensions=64)
    cut = answer.data[0].embedding
    assert len(cut) == 64
    assert math.isclose(math.hypot(*cut), 1, abs_tol=1e-5)
    assert math.isclose(cosine(cut, whole[:64]), math.hypot(*whole[:64]), abs_tol=1e-5)


def test_more_dimensions_than_there_are_are_refused(model_openai: OpenAI) -> None:
    with pytest.raises(sdk_module.BadRequestError) as caught:
        model_openai.embeddings.create(model=EMBEDDINGS, input="a", dimensions=DIMENSIONS + 1)
    assert caught.value.param == "dimensions"
