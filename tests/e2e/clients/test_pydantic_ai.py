"""pydantic-ai: agents whose answers are of a type, by both of OpenAI's APIs."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import (
    OpenAIChatModel,
    OpenAIChatModelSettings,
    OpenAIResponsesModel,
    OpenAIResponsesModelSettings,
)
from pydantic_ai.providers.openai import OpenAIProvider

from tests.e2e.conftest import CHAT, sdk
from tests.processes import Stack

pytestmark = pytest.mark.model


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]


OpenAIModel = OpenAIChatModel | OpenAIResponsesModel
Serve = Callable[[Stack, str], OpenAIModel]


@pytest.fixture(params=["chat", "responses"])
async def served_by(request: pytest.FixtureRequest) -> AsyncIterator[Serve]:
    """Makes the agent's model of one that a stack serves."""
    async with AsyncExitStack() as clients:

        def serve(stack: Stack, name: str) -> OpenAIModel:
            client = sdk(stack)
            clients.push_async_callback(client.close)
            provider = OpenAIProvider(openai_client=client)
            calm: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "parallel_tool_calls": False}
            if request.param == "chat":
                return OpenAIChatModel(name, provider=provider, settings=OpenAIChatModelSettings(**calm))
            return OpenAIResponsesModel(name, provider=provider, settings=OpenAIResponsesModelSettings(**calm))

        yield serve


@pytest.fixture
def small(served_by: Serve, model_stack: Stack) -> OpenAIModel:
    return served_by(model_stack, CHAT)


@pytest.fixture
def obedient(served_by: Serve, scripted: Stack) -> OpenAIModel:
    """Says what the last message tells it to."""
    return served_by(scripted, "echo")


@pytest.fixture
def echo(served_by: Serve, echo_stack: Stack) -> OpenAIModel:
    return served_by(echo_stack, "echo")


@pytest.mark.parametrize("output", [ToolOutput(Place), NativeOutput(Place)], ids=["tool", "native"])
async def test_an_answer_is_of_its_type(small: OpenAIModel, output: Any) -> None:
    agent = Agent(small, output_type=output)
    result = await agent.run("Where is the Colosseum?")
    assert isinstance(result.output, Place)


async def test_a_stream_grows_to_the_answer(small: OpenAIModel) -> None:
    agent = Agent(small, output_type=NativeOutput(Place))
    async with agent.run_stream("Where is the Colosseum?") as run:
        grown = [partial async for partial in run.stream_output(debounce_by=None)]
    assert isinstance(grown[-1], Place)


async def test_a_tool_is_called_and_answered(obedient: OpenAIModel) -> None:
    """The scripted model says what the last message tells it to: after the call that is the tool's result."""
    agent = Agent(obedient)

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


async def test_a_prompted_answer_is_an_object(obedient: OpenAIModel) -> None:
    """Asked for in words, with JSON mode: what is in the object is the model's wit, so the scripted one has it."""
    agent = Agent(obedient, output_type=PromptedOutput(Place))
    result = await agent.run(json.dumps([{"text": '{"city": '}, {"text": '"Oslo"}'}]))
    assert result.output == Place(city="Oslo")


async def test_text_comes_whole_and_streamed(echo: OpenAIModel) -> None:
    agent = Agent(echo, model_settings={"max_tokens": 3})
    assert (await agent.run("one two")).output == "one two one"
    async with agent.run_stream("one two") as run:
        pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == "one two one"
    assert run.usage.output_tokens == 3


async def test_errors_carry_their_status(served_by: Serve, echo_stack: Stack) -> None:
    for name, prompt, status in (("nobody", "hi", 404), ("echo", "word " * 9000, 400)):
        with pytest.raises(ModelHTTPError) as caught:
            await Agent(served_by(echo_stack, name)).run(prompt)
        assert caught.value.status_code == status
