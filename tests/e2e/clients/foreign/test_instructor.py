"""instructor in each of its modes for OpenAI-compatible servers."""

from collections.abc import Iterator
from typing import Any, Literal

import instructor
import pytest
from conftest import CHAT
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    city: Literal["Rome", "Oslo"]
    population: Literal[1, 2]


class Anything(BaseModel):
    """An object: all that JSON mode promises."""

    model_config = ConfigDict(extra="allow")


ASKED: dict[str, Any] = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Where is the Colosseum?"}],
    "response_model": Answer,
    "temperature": 0,
    "max_tokens": 60,
    "max_retries": 0,
}


@pytest.fixture
def openai(url: str, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


def test_the_answer_is_of_its_model(openai: OpenAI) -> None:
    assert isinstance(instructor.from_openai(openai, mode=instructor.Mode.TOOLS).create(**ASKED), Answer)


def test_json_mode_gives_an_object(openai: OpenAI) -> None:
    client = instructor.from_openai(openai, mode=instructor.Mode.JSON)
    ending = {"109": 30, "6150": 30}  # }, {}: a small model's object never ends by itself
    assert isinstance(client.create(**ASKED | {"response_model": Anything, "logit_bias": ending}), Anything)


def test_a_partial_answer_grows(openai: OpenAI) -> None:
    client = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)
    grown = list(client.create_partial(**ASKED))
    assert grown[-1].city in ("Rome", "Oslo")
    assert len(grown) > 1


async def test_the_asynchronous_client(url: str, key: str) -> None:
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as openai:
        client = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)
        assert isinstance(await client.create(**ASKED), Answer)
