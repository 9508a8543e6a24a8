"""JSON without a form of its own: the whole reply is [{"name": ..., "arguments": {...}}, ...], or one such object.
Granite 3 writes <|tool_call|> before it."""

from collections.abc import Sequence

from worker.engines.dialects.call_object import call_list, call_object, written_list
from worker.engines.dialects.dialect import BareDialect, Call
from worker.engines.dialects.lark import Lark, listed_objects
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import Tool


class Json(BareDialect):
    name = "json"
    tag = "<|tool_call|>"
    markers = (tag,)
    opens = "[{"

    def read(self, source: Source) -> Reads[None]:
        is_list = yield from source.take("[")
        if (yield from call_list(source) if is_list else call_object(source)):
            yield from source.spaces()
        else:
            source.give_up()

    def behind_tag(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        return listed_objects(lark, tools, once=once)

    def write(self, calls: Sequence[Call]) -> str:
        return written_list(calls)
