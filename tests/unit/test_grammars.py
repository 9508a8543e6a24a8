"""Constraints that cannot be kept are refused before any work."""

from typing import Any

import pytest

from gateway import grammars
from gateway.grammars import Grammars
from gateway.schemas.chat import ChatCompletionRequest
from shared.errors import InvalidRequest
from shared.messages import Structured

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
GOOD, BAD = {"type": "object", "properties": {"a": {"type": "integer"}}}, {"type": "wish"}


def tool(parameters: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **fields}}


OTHER = {"type": "function", "function": {"name": "g", "parameters": GOOD}}


async def test_the_parameter_to_blame_is_named() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await Grammars().check(Structured("json", BAD, "response_format"))
    assert refusal.value.param == "response_format"


async def test_what_was_found_sound_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Grammars()
    await seen.check(Structured("json", GOOD, "tools"))
    monkeypatch.setattr(grammars, "check", lambda *_: pytest.fail("looked at again"))
    await seen.check(Structured("json", GOOD, "tools"))


async def test_no_more_are_remembered_than_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grammars, "REMEMBERED", 2)
    seen = Grammars()
    for word in ("a", "b", "c"):
        await seen.check(Structured("regex", word))
    assert len(seen._sound) == 2


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({}, []),
        ({"response_format": {"type": "json_object"}}, ["response_format"]),
        ({"structured_outputs": {"regex": "a"}}, ["structured_outputs"]),
        ({"tools": [tool(BAD)]}, []),  # nothing is promised of them
        ({"tools": [tool(GOOD, strict=True)]}, ["tools"]),
        ({"tools": [tool(GOOD)], "tool_choice": "required"}, ["tools"]),
        ({"tools": [tool(GOOD, strict=True)], "tool_choice": "none"}, []),
        ({"tools": [tool(BAD), OTHER], "tool_choice": {"type": "function", "function": {"name": "g"}}}, ["tools"]),
    ],
)
def test_what_is_promised_is_what_is_looked_at(fields: dict[str, Any], params: list[str]) -> None:
    body = ChatCompletionRequest.model_validate(CHAT | fields)
    assert [structured.param for structured in body.constraints()] == params
