"""What a reply may hold, by its request and its model: the parser that reads it, and the grammar that it must obey."""

import json
from dataclasses import dataclass
from typing import Any

from shared.messages import Progress
from worker.engines.dialects.dialect import Dialect
from worker.engines.dialects.lark import Lark, Markers
from worker.engines.dialects.reasoning import Reasoning
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import ToolUse


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """`begun`: the prompt ends within thoughts. Without `dialect` and `use` it calls no tools."""

    dialect: Dialect | None = None
    use: ToolUse | None = None
    reasoning: Reasoning | None = None
    begun: bool = False

    def parser(self, markers: Markers) -> "ReplyParser | None":
        """None if the reply is text alone."""
        calls = self.dialect is not None and self.use is not None
        return ReplyParser(self, markers) if calls or self.reasoning is not None else None

    def grammar(self, markers: Markers, structured: str | None) -> str | None:
        """`structured`: the grammar of the text, in llguidance's JSON form. None if any text will do."""
        if self.dialect is None or self.use is None:
            if structured is None or self.reasoning is None:
                return structured
            return self._within_thoughts(Lark(markers), "@structured", structured)
        use, lark = self.use, Lark(markers)
        if structured is None and not use.is_constrained:
            return None
        tools, once = use.callable, use.once or self.dialect.single
        if use.required:
            return self._within_thoughts(lark, self.dialect.calls(lark, tools, once=once), None)
        if structured is not None:
            body = f"@structured | {self.dialect.calls(lark, tools, once=once)}"
            return self._within_thoughts(lark, body, structured)
        return self._within_thoughts(lark, self.dialect.text_then_calls(lark, tools, once=once), None)

    def _within_thoughts(self, lark: Lark, body: str, structured: str | None) -> str:
        if self.reasoning is not None:
            body = self.reasoning.before(lark, body, begun=self.begun)
        lark.rule("start", body)
        grammars: list[dict[str, Any]] = [{"lark_grammar": str(lark)}]
        if structured is not None:
            first, *others = json.loads(structured)["grammars"]
            grammars += [{**first, "name": "structured"}, *others]
        return json.dumps({"grammars": grammars})


class ReplyParser:
    """Turns a reply's text, in whatever pieces it comes, into text, thoughts and tool calls."""

    def __init__(self, reply: ReplyForm, markers: Markers) -> None:
        use, reasoning = reply.use, reply.reasoning
        self._only_calls = use is not None and use.required
        self.keep = markers.keep(
            (
                *(reply.dialect.markers if reply.dialect is not None and use is not None else ()),
                *((reasoning.begin, reasoning.end) if reasoning is not None else ()),
            )
        )
        self._source = Source([tool.name for tool in use.callable] if use is not None else ())
        self._reads = self._parse(reply)
        next(self._reads)

    @property
    def is_reasoning(self) -> bool:
        return self._source.channel == "reasoning"

    def push(self, text: str) -> Progress:
        if text:
            self._source.more(text)
            next(self._reads)
        return self._source.made()

    def finish(self) -> Progress:
        self._source.end()
        for _ in self._reads:
            raise AssertionError("a parser waits for text after the end")
        made = self._source.made()
        if self._only_calls:  # its grammar has no text: this is the beginning of a call that was cut off
            made.text = ""
        return made

    def _parse(self, reply: ReplyForm) -> Reads[None]:
        if reply.begun:
            self._source.channel = "reasoning"  # before the first text
        if reply.reasoning is not None:
            yield from reply.reasoning.parse(self._source, begun=reply.begun)
        if reply.dialect is not None and reply.use is not None:
            schemas = {tool.name: tool.parameters for tool in reply.use.callable}
            yield from reply.dialect.parse(self._source, schemas)
        yield from self._source.rest()
