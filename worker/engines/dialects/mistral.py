"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...] up to 2024, since then [TOOL_CALLS]name[ARGS]{...}."""

from collections.abc import Mapping, Sequence
from typing import Any

from worker.engines.dialects.call_object import arguments, call_list, call_object, written_list
from worker.engines.dialects.dialect import Call, MarkedDialect
from worker.engines.dialects.lark import Lark, alternatives, listed_objects, one_or_more
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import Tool

BEGIN, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class Mistral(MarkedDialect):
    """`template` tells which form its model writes; both are read."""

    name = "mistral"
    begin = BEGIN
    markers = (BEGIN, ID, ARGUMENTS)

    def __init__(self, template: str = "") -> None:
        self._writes_names = ARGUMENTS in template
        self._writes_ids = ID in template

    def parse(self, source: Source, schemas: Mapping[str, Mapping[str, Any] | None]) -> Reads[None]:
        while (yield from source.text_before(BEGIN)):
            yield from source.spaces()
            is_list = yield from source.take("[")
            made = (yield from call_list(source)) if is_list else (yield from self._named(source))
            if not made:
                source.give_up()
            else:
                yield from source.spaces()

    def _named(self, source: Source) -> Reads[bool]:
        if (yield from source.peek()) == "{":
            return (yield from call_object(source))
        name = yield from source.word()
        if name not in source.functions:
            return False
        if (yield from source.take(ID)):
            yield from source.word()
        yield from source.take(ARGUMENTS)
        yield from source.spaces()
        if (yield from source.peek()) != "{":
            return False
        source.call(name)
        yield from arguments(source)
        return True

    def behind_marker(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        if not self._writes_names:
            return f'" "? {listed_objects(lark, tools, once=once)}'
        lark.rule("ID", "/[a-zA-Z0-9]{9}/")
        id = f"{lark.marker(ID)} ID " if self._writes_ids else ""
        named = [
            f"{lark.literal(tool.name)} {id}{lark.marker(ARGUMENTS)} {lark.json(f'arguments_{number}', tool.schema)}"
            for number, tool in enumerate(tools)
        ]
        return one_or_more(lark.rule("call", alternatives(named)), lark.marker(BEGIN), once=once)

    def write(self, calls: Sequence[Call]) -> str:
        if self._writes_names:
            return "".join(f"{BEGIN}{name}{ARGUMENTS}{arguments}" for name, arguments in calls)
        return BEGIN + written_list(calls)
