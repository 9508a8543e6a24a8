"""The tools of a request, and which of them may or must be called."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from shared.errors import InvalidRequest
from shared.grammar import check, json_schema

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
OF_NAMES, OF_VALUES = ("properties", "$defs", "definitions"), ("items", "additionalProperties")
SIMPLE = {"type", "enum", "const", "required", "$ref", "minimum", "maximum", "minItems", "maxItems", "maxLength"}
# What an object may need other properties for than those that it names.
OPEN = {"anyOf", "allOf", "oneOf", "not", "if", "$ref", "patternProperties", "additionalProperties", "minProperties"}


@dataclass(frozen=True, slots=True)
class Tool:
    """`strict`: its arguments obey its schema, or the request is refused."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """Of the arguments that may be written. Raises InvalidRequest if the tool is strict and it cannot be obeyed.

        A schema that is not strict is obeyed in what llguidance supports of it; one that cannot be read allows any
        object.
        """
        if self.parameters is None:
            return json_schema(NO_PARAMETERS)
        try:
            return _checked(json.dumps(_closed({**self.parameters, "type": "object"})), self.strict)
        except (InvalidRequest, RecursionError) as error:
            if not self.strict:  # too deep
                return json_schema({"type": "object"})
            message = f"The arguments of '{self.name}' must obey a schema that is not supported: {error}"
            raise InvalidRequest(message, param="tools") from error

    def for_template(self) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {}} if self.parameters is None else dict(self.parameters)
        function = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools. `names`: of those that may be called, None for all of them. Where a call is
    `required`, all of them are strict."""

    tools: tuple[Tool, ...]
    required: bool = False
    names: tuple[str, ...] | None = None
    parallel: bool = True

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Self | None:
        """Of a chat payload as in shared.messages.Job; None if nothing may be called."""
        if not payload.get("tools"):
            return None
        choice = payload.get("tool_choice") or {}
        names, required = choice.get("names"), choice.get("mode") == "required"
        tools = tuple(
            Tool(tool["name"], tool.get("description"), tool.get("parameters"), required or bool(tool.get("strict")))
            for tool in payload["tools"]
        )
        if names is not None and not any(tool.name in names for tool in tools):
            raise InvalidRequest("'tool_choice' names none of the 'tools'.", param="tool_choice")
        return cls(
            tools,
            required=required,
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
    if not isinstance(properties, dict) or OPEN & schema.keys():
        return schema
    required = schema.get("required")
    if isinstance(required, list) and any(name not in properties for name in required):
        return schema
    return {**schema, "additionalProperties": False}


@lru_cache(maxsize=256)
def _checked(text: str, strict: bool) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(text)
    for form in (schema,) if strict else (schema, _simple(schema)):
        try:
            found = json_schema(form)
            check(json.dumps({"grammars": [{"json_schema": found}]}))
            return found
        except InvalidRequest:
            if strict:
                raise
    return json_schema({"type": "object"})


def _simple(schema: Any) -> Any:
    """With nothing in it but the keywords that llguidance always supports."""
    if not isinstance(schema, dict):
        return schema
    simple: dict[str, Any] = {}
    for key, value in schema.items():
        if key in OF_NAMES and isinstance(value, dict):
            simple[key] = {name: _simple(part) for name, part in value.items()}
        elif key in ("anyOf", "oneOf") and isinstance(value, list):
            simple["anyOf"] = [_simple(part) for part in value]
        elif key in OF_VALUES:
            simple[key] = _simple(value)
        elif key in SIMPLE:
            simple[key] = value
    return simple
