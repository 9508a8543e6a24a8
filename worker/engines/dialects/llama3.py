"""Llama 3.1 to 3.3: the whole reply is {"name": ..., "parameters": {...}}, at times behind <|python_tag|>."""

import json
from collections.abc import Sequence

from worker.engines.dialects.call_object import call_object
from worker.engines.dialects.dialect import BareDialect, Call
from worker.engines.dialects.lark import Lark, call_objects
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import Tool


class Llama3(BareDialect):
    name = "llama3"
    tag = "<|python_tag|>"
    markers = (tag,)
    opens = "{"
    single = True  # its templates refuse a message with several

    def read(self, source: Source) -> Reads[None]:
        """Fine-tuned models write several, with semicolons or line breaks between."""
        while (yield from call_object(source)):
            yield from source.spaces()
            yield from source.take(";")
            yield from source.spaces()
            source.mark()
        source.give_up()

    def behind_tag(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        return call_objects(lark, tools, "parameters")

    def write(self, calls: Sequence[Call]) -> str:
        return "; ".join(f'{{"name": {json.dumps(name)}, "parameters": {arguments}}}' for name, arguments in calls)
