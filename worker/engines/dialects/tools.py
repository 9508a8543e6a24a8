"""The tools of a request, and which of them may or must be called."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from llguidance import LLMatcher

from shared.errors import InvalidRequest

# As json.dumps writes, and so most chat templates; free white space is where a small model goes in circles.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
BESIDE_PROPERTIES = {"anyOf", "allOf", "oneOf", "not", "if", "$ref", "patternProperties", "additionalProperties"}


@dataclass(frozen=True, slots=True)
class Tool:
    """`strict`: its arguments obey its schema whenever it is called, not only where a call is forced."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """Of the arguments that may be written. Raises InvalidRequest if the tool is strict and it cannot be obeyed.

        A schema that is not strict is obeyed as far as llguidance can, and one that it cannot read allows any object.
        """
        parameters = NO_PARAMETERS if self.parameters is None else _closed({"type": "object", **self.parameters})
        text = json.dumps({**parameters, "x-guidance": {**JSON_STYLE, "lenient": not self.strict}})
        wrong = _what_is_wrong_with(text)
        if wrong and self.strict:
            raise InvalidRequest(
                f"The schema of the strict tool '{self.name}' is not supported: {wrong}", param="tools"
            )
        schema: dict[str, Any] = {"type": "object", "x-guidance": JSON_STYLE} if wrong else json.loads(text)
        return schema

    def for_template(self) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {}} if self.parameters is None else dict(self.parameters)
        function = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools. `names`: of those that may be called, None for all of them."""

    tools: tuple[Tool, ...]
    required: bool = False
    names: tuple[str, ...] | None = None
    parallel: bool = True

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Self | None:
        """Of a chat payload as in shared.messages.Job; None if nothing may be called."""
        if not payload.get("tools"):
            return None
        tools = tuple(
            Tool(tool["name"], tool.get("description"), tool.get("parameters"), bool(tool.get("strict")))
            for tool in payload["tools"]
        )
        choice = payload.get("tool_choice") or {}
        names = choice.get("names")
        return cls(
            tools,
            required=choice.get("mode") == "required",
            names=None if names is None else tuple(names),
            parallel=payload.get("parallel_tool_calls") is not False,
        )

    @property
    def callable(self) -> tuple[Tool, ...]:
        return tuple(tool for tool in self.tools if self.names is None or tool.name in self.names)

    @property
    def once(self) -> bool:
        """No more than one call. A function that must be called by its name is called once, as by OpenAI."""
        return not self.parallel or (self.required and len(self.callable) == 1 and self.names is not None)

    @property
    def is_constrained(self) -> bool:
        """A parser alone could not keep what was asked for."""
        return self.required or self.once or self.names is not None or any(tool.strict for tool in self.callable)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Without arguments that it does not name, where it leaves that open: functions take no others."""
    properties = schema.get("properties")
    if not isinstance(properties, dict) or BESIDE_PROPERTIES & schema.keys():
        return schema
    required = schema.get("required")
    if isinstance(required, list) and any(name not in properties for name in required):
        return schema
    return {**schema, "additionalProperties": False}


@lru_cache(maxsize=256)
def _what_is_wrong_with(schema: str) -> str:
    """In one line; nothing if it can be obeyed."""
    failed, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(schema))
    return " ".join(messages[0].split()) if failed and messages else ""
