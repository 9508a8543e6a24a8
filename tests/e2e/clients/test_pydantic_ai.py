"""pydantic-ai: agents whose answers are of a type."""

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

from tests.e2e.clients.conftest import ECHO, KEY, SCRIPTED
from tests.e2e.conftest import CHAT
from tests.processes import Stack

pytestmark = pytest.mark.model


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]


@pytest.fixture
async def model(served: Stack) -> AsyncIterator[Any]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        provider = OpenAIProvider(openai_client=client)
        settings = OpenAIChatModelSettings(temperature=0, max_tokens=60, parallel_tool_calls=False)
        yield lambda name: OpenAIChatModel(name, provider=provider, settings=settings)


@pytest.mark.parametrize("output", [ToolOutput(Place), NativeOutput(Place)], ids=["tool", "native"])
async def test_an_answer_is_of_its_type(model: Any, output: Any) -> None:
    agent = Agent(model(CHAT), output_type=output)
    result = await agent.run("Where is the Colosseum?")
    assert isinstance(result.output, Place)


async def test_a_stream_grows_to_the_answer(model: Any) -> None:
    agent = Agent(model(CHAT), output_type=NativeOutput(Place))
    async with agent.run_stream("Where is the Colosseum?") as run:
        grown = [partial async for partial in run.stream_output(debounce_by=None)]
    assert isinstance(grown[-1], Place)


async def test_a_tool_is_called_and_answered(model: Any) -> None:
    """The scripted model says what the last message tells it to: after the call that is the tool's result."""
    agent = Agent(model(SCRIPTED))

    @agent.tool_plain
    def weather(city: str) -> str:
        return json.dumps([{"text": f"cold in {city}"}])

    said = [
        {"reasoning": "hm"},
        {"tool_calls": [{"index": 0, "name": "weather", "arguments": '{"city"'}]},
        {"tool_calls": [{"index": 0, "arguments": ': "Rome"}'}]},
    ]
    whole = await agent.run(json.dumps(said))
    assert whole.output == "cold in Rome"
    async with agent.run_stream(json.dumps(said)) as run:
        assert await run.get_output() == "cold in Rome"
    assert whole.usage.requests == 2
    assert [part.part_kind for part in whole.all_messages()[1].parts] == ["thinking", "tool-call"]


async def test_a_prompted_answer_is_an_object(model: Any) -> None:
    """Asked for in words, with JSON mode: what is in the object is the model's wit, so the scripted one has it."""
    agent = Agent(model(SCRIPTED), output_type=PromptedOutput(Place))
    result = await agent.run(json.dumps([{"text": '{"city": '}, {"text": '"Oslo"}'}]))
    assert result.output == Place(city="Oslo")


async def test_text_comes_whole_and_streamed(model: Any) -> None:
    agent = Agent(model(ECHO), model_settings={"max_tokens": 3})
    assert (await agent.run("one two")).output == "one two one"
    async with agent.run_stream("one two") as run:
        pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == "one two one"
    assert run.usage.output_tokens == 3


@pytest.mark.parametrize(("name", "prompt", "status"), [("nobody", "hi", 404), (ECHO, "word " * 9000, 400)])
async def test_errors_carry_their_status(model: Any, name: str, prompt: str, status: int) -> None:
    with pytest.raises(ModelHTTPError) as caught:
        await Agent(model(name)).run(prompt)
    assert caught.value.status_code == status
