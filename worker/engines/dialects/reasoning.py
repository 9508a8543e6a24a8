"""Thoughts that a model writes before its reply, between two markers."""

from dataclasses import dataclass

from worker.engines.dialects.lark import Lark
from worker.engines.dialects.source import Reads, Source


@dataclass(frozen=True, slots=True)
class Reasoning:
    name: str
    begin: str
    end: str

    def parse(self, source: Source, *, begun: bool) -> Reads[None]:
        """Reads the thoughts that a reply may begin with, and in which it does begin if the prompt began them."""
        source.mark()
        yield from source.spaces()
        if not (yield from source.take(self.begin)) and not begun:
            source.give_up()
            return
        source.channel = "reasoning"
        yield from source.spaces()
        yield from source.text_before(self.end)
        source.channel = "text"
        yield from source.spaces()

    def before(self, lark: Lark, body: str, *, begun: bool) -> str:
        """The body of a rule: thoughts, then `body`; without thoughts too if they were not begun."""
        thoughts = lark.rule("thoughts", f"{lark.text_then(self.end, 'thought')} BREAKS?")
        lark.rule("BREAKS", r"/\n{1,2}/")
        return f"{thoughts} ({body})" if begun else f"({lark.marker(self.begin)} {thoughts})? ({body})"


THINK = Reasoning("think", "<think>", "</think>")
MAGISTRAL = Reasoning("magistral", "[THINK]", "[/THINK]")
