"""llama-index: OpenAILike and OpenAILikeEmbedding."""

from typing import Any, Literal

import pytest
from conftest import CHAT, ECHO, EMBEDDINGS
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from openai import AuthenticationError, BadRequestError, NotFoundError
from pydantic import BaseModel

HI = [ChatMessage(role="user", content="Where is the Colosseum?")]


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]
    open: bool


def weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather of a city."""
    return f"cold in {city}"


@pytest.fixture
def model(url: str, key: str) -> Any:
    def model(**options: Any) -> OpenAILike:
        place = {"api_base": url, "api_key": key, "max_retries": 0}
        short = {"context_window": 1024, "max_tokens": 40, "temperature": 0}
        return OpenAILike(**{"model": CHAT, "is_chat_model": True, **place, **short, **options})

    return model


async def test_a_chat_comes_whole_streamed_and_asynchronous(model: Any) -> None:
    echo = model(model=ECHO, max_tokens=5)
    whole = echo.chat(HI).message.content
    assert whole == "Where is the Colosseum? Where"
    assert "".join(piece.delta for piece in echo.stream_chat(HI)) == whole
    assert (await echo.achat(HI)).message.content == whole
    assert "".join([piece.delta async for piece in await echo.astream_chat(HI)]) == whole


def test_a_completion_comes_whole_and_streamed(model: Any) -> None:
    plain = model(is_chat_model=False, max_tokens=5)
    streamed = list(plain.stream_complete("The capital of France is"))
    assert streamed[-1].text == plain.complete("The capital of France is").text != ""


def test_a_tool_is_called(model: Any) -> None:
    caller = model(is_function_calling_model=True)
    answer = caller.predict_and_call([FunctionTool.from_defaults(weather)], user_msg="Rome?", tool_required=True)
    assert str(answer).removeprefix("cold in ") in ("Rome", "Oslo")


@pytest.mark.parametrize("how", ["is_function_calling_model", "should_use_structured_outputs"])
def test_an_answer_is_of_its_model(model: Any, how: str) -> None:
    structured = model(**{how: True}).as_structured_llm(Place)
    assert isinstance(structured.chat(HI).raw, Place)
    if how == "should_use_structured_outputs":  # over tools, a stream leaves it to the model whether to call
        assert isinstance(list(structured.stream_chat(HI))[-1].raw, Place)


async def test_embeddings(url: str, key: str) -> None:
    embeddings = OpenAILikeEmbedding(model_name=EMBEDDINGS, api_base=url, api_key=key)
    one, two = embeddings.get_text_embedding_batch(["one", "two"])
    assert len(one) == len(two) == 384
    assert await embeddings.aget_query_embedding("one") == pytest.approx(one, abs=1e-5)


def test_errors_are_openai_s(model: Any) -> None:
    with pytest.raises(NotFoundError):
        model(model="nobody").chat(HI)
    with pytest.raises(AuthenticationError):
        model(model=ECHO, api_key="wrong").chat(HI)
    with pytest.raises(BadRequestError, match="maximum context length"):
        model(model=ECHO).chat([ChatMessage(role="user", content="word " * 9000)])
