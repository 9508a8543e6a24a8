"""The anthropic SDK on a small model that is held to what was asked of it. Its shapes: tests/e2e/test_messages.py."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.e2e.conftest import CHAT
from tests.processes import Stack

pytestmark = pytest.mark.model

CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}}, "required": ["city"]}
TOOLS: list[Any] = [{"name": name, "input_schema": CITY} for name in ("weather", "map")]
ASKED: dict[str, Any] = {
    "model": CHAT,
    "max_tokens": 60,
    "messages": [{"role": "user", "content": "Is the Colosseum in Rome?"}],
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "tools": TOOLS,
    "extra_body": {"temperature": 0},  # the library no longer has it
}


@pytest.fixture
def client(model_stack: Stack) -> Iterator[Anthropic]:
    with Anthropic(base_url=model_stack.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("choice", "names"), [({"type": "any"}, {"weather", "map"}), ({"type": "tool", "name": "map"}, {"map"})]
)
def test_a_call_is_forced_and_its_arguments_fit(client: Anthropic, choice: dict[str, Any], names: set[str]) -> None:
    message = client.messages.create(**ASKED, tool_choice={**choice, "disable_parallel_tool_use": True})
    (call,) = message.content
    assert call.type == "tool_use"
    assert call.name in names
    assert call.input["city"] in ("Rome", "Oslo")
    assert message.stop_reason == "tool_use"


def test_a_streamed_call_comes_in_pieces_of_json(client: Anthropic) -> None:
    choice: Any = {"type": "tool", "name": "weather"}
    with client.messages.stream(**ASKED, tool_choice=choice) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        (call,) = stream.get_final_message().content
    assert call.type == "tool_use"
    assert len(pieces) > 1
    assert '"city"' in "".join(pieces)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "cold"}]}
    turns = [*ASKED["messages"], {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    after = client.messages.create(**ASKED | {"messages": turns, "max_tokens": 2}, tool_choice={"type": "none"})
    assert after.usage.output_tokens <= 2


def test_tokens_are_counted_with_system_and_tools(client: Anthropic) -> None:
    counted = {name: ASKED[name] for name in ("model", "messages", "system", "tools")}
    tokens = client.messages.count_tokens(**counted).input_tokens
    usage = client.messages.create(**ASKED | {"max_tokens": 1}).usage
    assert tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    del counted["tools"]
    assert client.messages.count_tokens(**counted).input_tokens < tokens


async def test_a_conversation_that_is_too_long_is_the_library_s_own_error(model_stack: Stack) -> None:
    async with AsyncAnthropic(base_url=model_stack.url, auth_token="none", max_retries=0) as client:
        with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
            await client.messages.create(**ASKED | {"messages": [{"role": "user", "content": "word " * 900}]})
