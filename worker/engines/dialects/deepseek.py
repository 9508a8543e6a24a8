"""DeepSeek, between special tokens: V3 and R1 write `function`, a name and a block of JSON, V3.1 a name and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from worker.engines.dialects.call_object import arguments
from worker.engines.dialects.dialect import Call, MarkedDialect
from worker.engines.dialects.lark import Lark, alternatives, one_or_more
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import Tool

BEGIN_ALL, END_ALL = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
BLOCK = "```"


class DeepSeek(MarkedDialect):
    """`template` tells which form its model writes; both are read."""

    name = "deepseek"
    begin = BEGIN_ALL
    also_begin = (BEGIN,)
    markers = (BEGIN_ALL, BEGIN, SEPARATOR, END, END_ALL)

    def __init__(self, template: str = "") -> None:
        self._writes_blocks = BLOCK in template

    def parse(self, source: Source, schemas: Mapping[str, Mapping[str, Any] | None]) -> Reads[None]:
        while begin := (yield from source.text_before(BEGIN_ALL, BEGIN)):
            yield from source.spaces()
            if begin == BEGIN_ALL:
                yield from source.take(BEGIN)
                yield from source.spaces()
            if not (yield from self._call(source)):
                source.give_up()
                continue
            yield from source.spaces()
            yield from source.close(END)
            yield from source.spaces()
            yield from source.close(END_ALL)
            yield from source.spaces()

    def _call(self, source: Source) -> Reads[bool]:
        name = yield from source.word()
        in_block = name == "function" and (yield from source.take(SEPARATOR))
        if in_block:
            name = yield from source.word()
        if name not in source.functions:
            return False
        if in_block:
            yield from source.spaces()
            in_block = yield from source.take(f"{BLOCK}json")
        elif not (yield from source.take(SEPARATOR)):
            return False
        yield from source.spaces()
        if (yield from source.peek()) != "{":
            return False
        source.call(name)
        yield from arguments(source)
        if in_block:
            yield from source.spaces()
            yield from source.close(BLOCK)
        return True

    def behind_marker(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        begin, separator, end = map(lark.marker, (BEGIN, SEPARATOR, END))
        bodies = []
        for number, tool in enumerate(tools):
            arguments = lark.json(f"arguments_{number}", tool.schema)
            if self._writes_blocks:
                before, after = lark.literal(f"{tool.name}\n{BLOCK}json\n"), lark.literal(f"\n{BLOCK}")
                bodies.append(f'"function" {separator} {before} {arguments} {after}')
            else:
                bodies.append(f"{lark.literal(tool.name)} {separator} {arguments}")
        call = lark.rule("call", f"{begin} {alternatives(bodies)} {end}")
        between = r'"\n"' if self._writes_blocks else '""'
        return f"{one_or_more(call, between, once=once)} {lark.marker(END_ALL)}"

    def write(self, calls: Sequence[Call]) -> str:
        if self._writes_blocks:
            written = "\n".join(f"{BEGIN}function{SEPARATOR}{n}\n{BLOCK}json\n{a}\n{BLOCK}{END}" for n, a in calls)
        else:
            written = "".join(f"{BEGIN}{name}{SEPARATOR}{arguments}{END}" for name, arguments in calls)
        return f"{BEGIN_ALL}{written}{END_ALL}"
