"""What a dialect is: one way in which models write tool calls."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from worker.engines.dialects.lark import Lark, without
from worker.engines.dialects.source import Reads, Source
from worker.engines.dialects.tools import Tool

Call = tuple[str, str]  # a function's name and its arguments as JSON


class Dialect(ABC):
    name: ClassVar[str]
    markers: ClassVar[tuple[str, ...]]  # texts that the parser must see, though they may be special tokens
    single = False  # its models make one call a reply

    @abstractmethod
    def parse(self, source: Source, schemas: Mapping[str, Mapping[str, Any] | None]) -> Reads[None]:
        """Reads a reply to its end. `schemas`: of the functions' arguments."""

    @abstractmethod
    def calls(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        """The body of a grammar's rule: calls of any of the tools, which a reply begins with."""

    @abstractmethod
    def text_then_calls(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        """The same behind any text, and any text without calls."""

    @abstractmethod
    def write(self, calls: Sequence[Call]) -> str:
        """What a model would have written."""


class MarkedDialect(Dialect):
    """Its calls begin with a marker, wherever in a reply."""

    begin: ClassVar[str]
    also_begin: ClassVar[tuple[str, ...]] = ()  # what the parser takes for a beginning too

    def calls(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        return f"{lark.marker(self.begin)} {self.behind_marker(lark, tools, once=once)}"

    def text_then_calls(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        text = lark.text_without(self.begin, "text", *self.also_begin)
        to_call = lark.text_then(self.begin, "text", *self.also_begin)
        return f"{text} | {to_call} {self.behind_marker(lark, tools, once=once)}"

    @abstractmethod
    def behind_marker(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        """The first call behind its marker, and others."""


class BareDialect(Dialect):
    """Its calls are all of a reply and need no marker, though there may be a tag before them."""

    tag: ClassVar[str]
    opens: ClassVar[str]  # the characters that calls begin with

    def parse(self, source: Source, schemas: Mapping[str, Mapping[str, Any] | None]) -> Reads[None]:
        source.mark()
        yield from source.spaces()
        yield from self.read(source)
        while (yield from source.text_before(self.tag)):
            yield from source.spaces()
            yield from self.read(source)

    @abstractmethod
    def read(self, source: Source) -> Reads[None]:
        """Calls, if it is them that come next; the source gives up what are none."""

    def calls(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        tag = f"{lark.marker(self.tag)}? " if lark.has_token(self.tag) else ""
        return tag + self.behind_tag(lark, tools, once=once)

    def text_then_calls(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        begin = re.escape(self.opens)  # what begins so is a call
        lark.rule("TEXT", rf"/[ \t\r\n]*[^{begin} \t\r\n](?s:.*)/" + without(self.tag))
        return f'"" | TEXT | {self.calls(lark, tools, once=once)}'

    @abstractmethod
    def behind_tag(self, lark: Lark, tools: Sequence[Tool], *, once: bool) -> str:
        """The calls, or the one if it is to be one."""
