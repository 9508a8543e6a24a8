"""Qwen3-Coder and Qwen 3.5: <tool_call><function=name><parameter=key>value</parameter></function></tool_call>.

A value is bare text where the function's schema says string, else JSON.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared.errors import InvalidRequest
from shared.grammar import ANNOTATIONS, json_schema
from worker.engines.dialects.dialect import Call, MarkedDialect
from worker.engines.dialects.lark import Lark, alternatives, one_or_more
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import Tool

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
# What the grammar keeps, of all arguments and of one that is bare text.
KEPT = ANNOTATIONS | {"type", "properties", "required", "additionalProperties"}
KEPT_OF_TEXT = ANNOTATIONS | {"type", "enum", "const"}
ELSEWHERE = re.compile(r'"\$ref": "(?!#/(\$defs|definitions)/)')  # what a value's own grammar would not find

Schemas = Mapping[str, Mapping[str, Any] | None]


class Qwen3Coder(MarkedDialect):
    name = "qwen3-coder"
    begin = BEGIN
    also_begin = (FUNCTION,)  # its models are known to leave the marker out
    markers = (BEGIN, END)

    def parse(self, source: Source, schemas: Schemas) -> Reads[None]:
        while begin := (yield from source.text_before(BEGIN, FUNCTION)):
            yield from source.spaces()
            if begin == BEGIN and not (yield from source.take(FUNCTION)):
                source.give_up()
                continue
            name = yield from source.word()
            if name not in source.functions or not (yield from source.take(">")):
                source.give_up()
                continue
            source.call(name)
            yield from self._arguments(source, _properties(schemas.get(name)))
            for end in (END_FUNCTION, END):
                yield from source.spaces()
                yield from source.close(end)
            yield from source.spaces()

    def _arguments(self, source: Source, properties: Mapping[str, Any]) -> Reads[None]:
        before = "{"
        yield from source.spaces()
        while (yield from source.take(PARAMETER)):
            key = yield from source.up_to(">")
            value = yield from source.up_to(END_PARAMETER)
            if key is None or value is None:
                source.argue(before)  # cut off: what was whole so far, and no more
                return
            value = value.removeprefix("\n").removesuffix("\n")
            source.argue(f"{before}{json.dumps(key)}: {_as_json(value, properties.get(key))}")
            before = ", "
            yield from source.spaces()
        source.argue("{}" if before == "{" else "}")

    def behind_marker(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        calls = []
        for number, tool in enumerate(tools):
            parameters = self._parameters(lark, tool, f"argument_{number}")
            calls.append(f"{lark.literal(f'{FUNCTION}{tool.name}>' + chr(10))} {parameters}")
        end = rf"{lark.literal(END_FUNCTION + chr(10))} {lark.marker(END)}"
        call = lark.rule("call", rf'"\n" {alternatives(calls)} {end}')
        return one_or_more(call, rf'"\n" {lark.marker(BEGIN)}', once=once)

    def _parameters(self, lark: Lark, tool: Tool, name: str) -> str:
        """In the order of the schema; those that are not required may be left out."""
        schema = tool.schema
        properties, required = _properties(schema), schema.get("required", ())
        if beyond := (schema.keys() - KEPT) | (set(required) - properties.keys()):
            _refuse_if_strict(tool, beyond)
        rules = []
        for number, (key, property) in enumerate(properties.items()):
            value = self._value(lark, tool, schema, key, property, f"{name}_{number}")
            rule = f"{lark.literal(f'{PARAMETER}{key}>' + chr(10))} {value}"
            rules.append(rule if key in required else f"({rule})?")
        return " ".join(rules)

    def _value(self, lark: Lark, tool: Tool, schema: Mapping[str, Any], key: str, property: Any, name: str) -> str:
        """A value and the end of its parameter."""
        end = lark.literal(f"\n{END_PARAMETER}\n")
        if not _is_text(property):
            whole = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
            if ELSEWHERE.search(json.dumps([property, whole])):
                _refuse_if_strict(tool, {"$ref"})
                property = {}
            whole |= json_schema(property)
            return f"{lark.json(name, whole)} {end}"
        if beyond := property.keys() - KEPT_OF_TEXT:
            _refuse_if_strict(tool, beyond)
        if texts := _constants(property):
            return f"{alternatives(map(lark.literal, texts))} {end}"
        lark.rule(f"{name}[lazy]", r"/(?s:.*)<\/parameter>/")
        return rf'{name} "\n"'

    def write(self, calls: Sequence[Call]) -> str:
        return "\n".join(f"{BEGIN}\n{_written(name, arguments)}\n{END}" for name, arguments in calls)


def _written(name: str, arguments: str) -> str:
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        values = {}
    parameters = "".join(
        f"{PARAMETER}{key}>\n{value if isinstance(value, str) else json.dumps(value)}\n{END_PARAMETER}\n"
        for key, value in (values.items() if isinstance(values, dict) else ())
    )
    return f"{FUNCTION}{name}>\n{parameters}{END_FUNCTION}"


def _properties(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    properties = (schema or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


def _constants(property: Mapping[str, Any]) -> list[Any]:
    """The values that alone are allowed; none if any are."""
    values = [property["const"]] if "const" in property else property.get("enum")
    return values if isinstance(values, list) else []


def _is_text(property: Any) -> bool:
    """All values that it allows are strings."""
    if not isinstance(property, dict):
        return False
    constants = _constants(property)
    may_be = property["type"] == "string" if "type" in property else bool(constants)
    return may_be and all(isinstance(one, str) for one in constants)


def _refuse_if_strict(tool: Tool, keywords: Iterable[str]) -> None:
    if tool.strict:
        message = (
            f"The arguments of '{tool.name}' must obey {min(keywords)!r}, which cannot be kept in this model's form."
        )
        raise InvalidRequest(message, param="tools")


def _as_json(value: str, property: Any) -> str:
    if _is_text(property):
        return json.dumps(value, ensure_ascii=False)
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False)
    return value
