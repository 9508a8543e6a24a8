"""Llama 3.1 to 3.3: the whole reply is {"name": ..., "parameters": {...}}, at times behind <|python_tag|>."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from worker.engines.dialects.call_object import call_object
from worker.engines.dialects.dialect import Call, Dialect
from worker.engines.dialects.lark import Lark, call_objects
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import Tool

TAG = "<|python_tag|>"


class Llama3(Dialect):
    name = "llama3"
    markers = (TAG,)
    single = True  # its templates refuse a message with several

    def parse(self, source: Source, schemas: Mapping[str, Mapping[str, Any] | None]) -> Reads[None]:
        source.mark()
        yield from source.spaces()
        yield from self._calls(source)
        while (yield from source.text_before(TAG)):
            yield from source.spaces()
            yield from self._calls(source)

    def _calls(self, source: Source) -> Reads[None]:
        """Fine-tuned models write several, with semicolons or line breaks between."""
        while (yield from call_object(source)):
            yield from source.spaces()
            yield from source.take(";")
            yield from source.spaces()
            source.mark()
        source.give_up()

    def calls(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        tag = f"{lark.marker(TAG)}? " if lark.has_token(TAG) else ""
        return tag + call_objects(lark, tools, "parameters")

    def text_then_calls(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        lark.rule("TEXT", r"/[ \t\r\n]*[^{ \t\r\n](?s:.*)/")  # what begins with a brace is a call
        return f'"" | TEXT | {self.calls(lark, tools, once=once)}'

    def write(self, calls: Sequence[Call]) -> str:
        return "; ".join(f'{{"name": {json.dumps(name)}, "parameters": {arguments}}}' for name, arguments in calls)
