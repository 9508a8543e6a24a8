"""Hermes, Qwen 2.5 and 3, SmolLM2-1.7B: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one after another."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from worker.engines.dialects.call_object import call_object
from worker.engines.dialects.dialect import Call, MarkedDialect
from worker.engines.dialects.lark import Lark, call_objects, one_or_more
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import Tool

BEGIN, END = "<tool_call>", "</tool_call>"


class Hermes(MarkedDialect):
    name = "hermes"
    begin = BEGIN
    markers = (BEGIN, END)

    def parse(self, source: Source, schemas: Mapping[str, Mapping[str, Any] | None]) -> Reads[None]:
        while (yield from source.text_before(BEGIN)):
            yield from source.spaces()
            if not (yield from call_object(source)):
                source.give_up()
                continue
            yield from source.spaces()
            yield from source.close(END)
            yield from source.spaces()

    def behind_marker(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        call = lark.rule("call", rf'"\n" {call_objects(lark, tools, "arguments")} "\n" {lark.marker(END)}')
        return one_or_more(call, rf'"\n" {lark.marker(BEGIN)}', once=once)

    def write(self, calls: Sequence[Call]) -> str:
        return "\n".join(
            f'{BEGIN}\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n{END}' for name, arguments in calls
        )
