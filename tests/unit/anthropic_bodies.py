"""Requests in Anthropic's words."""

from typing import Any

import orjson

from gateway.anthropic.schemas import MessagesRequest
from gateway.bodies import parse

BODY: dict[str, Any] = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
USE: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}


def body(base: dict[str, Any] = BODY, **fields: Any) -> bytes:
    return orjson.dumps(base | fields)


def payload_of(**fields: Any) -> dict[str, Any]:
    """Of the job that a request becomes."""
    return parse(body(**fields), MessagesRequest).chat().payload()
