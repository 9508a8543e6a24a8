"""A reply's text as it arrives, and what is made of it.

A parser is a generator that reads a Source from front to back and yields wherever it needs more than there is.
"""

import re
from collections.abc import Callable, Generator, Iterable
from typing import Literal, TypeVar

from shared.messages import Progress, ToolCallDelta, add_calls

Value = TypeVar("Value")
Reads = Generator[None, None, Value]

SPACES = " \t\r\n"
WORD = re.compile(r"[\w.:-]*")
LONGEST_NAME = 256  # characters of a function's name: no more than these are held back in wait for its end


class Source:
    """`functions` are those that may be called. `channel` is where text goes that is no part of a call."""

    def __init__(self, functions: Iterable[str] = ()) -> None:
        self.functions = frozenset(functions)
        self.channel: Literal["text", "reasoning"] = "text"
        self._text = ""
        self._at = 0  # in _text; what is before it has been read
        self._mark: int | None = None  # where to go back to
        self._unsaid = ""  # comes out as text if it is gone back
        self._ended = False
        self._calls = 0
        self._made = Progress()

    # What drives the parser

    def more(self, text: str) -> None:
        cut = self._at if self._mark is None else self._mark
        self._text = self._text[cut:] + text
        self._at -= cut
        self._mark = None if self._mark is None else 0

    def end(self) -> None:
        self._ended = True

    def made(self) -> Progress:
        """Since the last call."""
        made, self._made = self._made, Progress()
        return made

    # What the parser says

    def say(self, text: str) -> None:
        if self.channel == "text":
            self._made.text += text
        else:
            self._made.reasoning += text

    def call(self, name: str) -> None:
        """A tool call begins, and there is no way back."""
        self._mark = None
        self._made.tool_calls.append(ToolCallDelta(self._calls, name))
        self._calls += 1

    def argue(self, arguments: str) -> None:
        """The next piece of the arguments of the call that began last."""
        if arguments:
            add_calls(self._made.tool_calls, [ToolCallDelta(self._calls - 1, arguments=arguments)])

    # What the parser reads

    def mark(self) -> None:
        self._mark, self._unsaid = self._at, ""

    def give_up(self) -> None:
        """What was read since the mark, or since the marker that was found last, is no call: it is text."""
        assert self._mark is not None
        self._at, self._mark = self._mark, None
        self.say(self._unsaid)

    def text_before(self, *markers: str) -> Reads[str]:
        """Says all text up to one of the markers, but for white space before it. That marker; at the end, none."""
        self._mark = None  # or all of the text would be kept
        while True:
            found = [(at, marker) for marker in markers if (at := self._text.find(marker, self._at)) >= 0]
            end = min(found)[0] if found else len(self._text) - self._beginning_of_a_marker(markers)
            said = self._text[self._at : end].rstrip(SPACES)
            self.say(said)
            self._at += len(said)
            if found:
                return self._pass(*min(found))
            if self._ended:
                self.say(self._text[self._at :])
                self._at = len(self._text)
                return ""
            yield

    def _pass(self, at: int, marker: str) -> str:
        self._unsaid = self._text[self._at : at] + marker
        self._at = self._mark = at + len(marker)
        return marker

    def _beginning_of_a_marker(self, markers: tuple[str, ...]) -> int:
        """Length of the longest end of the text with which a marker begins."""
        longest = min(max(map(len, markers), default=1) - 1, len(self._text) - self._at)
        for length in range(longest, 0, -1):
            end = self._text[len(self._text) - length :]
            if any(marker.startswith(end) for marker in markers):
                return length
        return 0

    def rest(self) -> Reads[None]:
        yield from self.text_before()

    def peek(self) -> Reads[str]:
        """The next character; none at the end."""
        while self._at == len(self._text) and not self._ended:
            yield
        return self._text[self._at : self._at + 1]

    def spaces(self) -> Reads[None]:
        while (character := (yield from self.peek())) and character in SPACES:
            self._at += 1

    def take(self, expected: str) -> Reads[bool]:
        """Reads `expected` if it is what comes next."""
        while len(self._text) - self._at < len(expected) and expected.startswith(self._text[self._at :]):
            if self._ended:
                return False
            yield
        if not self._text.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def close(self, marker: str) -> Reads[None]:
        """Reads an end marker if it is what comes next, or what there is of it where the reply was cut off."""
        if not (yield from self.take(marker)) and marker.startswith(self._text[self._at :]):
            self._at = len(self._text)

    def word(self) -> Reads[str]:
        """A name, up to what cannot be a part of one."""
        while True:
            found = WORD.match(self._text, self._at)
            assert found is not None
            if found.end() < len(self._text) or self._ended or len(found[0]) > LONGEST_NAME:
                self._at = found.end()
                return found[0]
            yield

    def up_to(self, marker: str) -> Reads[str | None]:
        """What stands before the marker, which is read too; None if there is no such marker."""
        while (found := self._text.find(marker, self._at)) < 0:
            if self._ended:
                self._at = len(self._text)
                return None
            yield
        text = self._text[self._at : found]
        self._at = found + len(marker)
        return text

    def value(self, sink: Callable[[str], object]) -> Reads[bool]:
        """Gives a JSON value to `sink` as it comes; its brackets and strings are counted, no more. Is it whole?"""
        if (first := (yield from self.peek())) not in tuple('{["'):
            return bool(first) and (yield from self._scalar(sink))
        depth, in_string, escaped = 0, False, False
        while True:
            for at in range(self._at, len(self._text)):
                character = self._text[at]
                if escaped:
                    escaped = False
                elif in_string:
                    escaped, in_string = character == "\\", character != '"'
                elif character == '"':
                    in_string = True
                else:
                    depth += (character in "{[") - (character in "}]")
                if depth == 0 and not in_string:
                    sink(self._text[self._at : at + 1])
                    self._at = at + 1
                    return True
            sink(self._text[self._at :])
            self._at = len(self._text)
            if self._ended:
                return False
            yield

    def _scalar(self, sink: Callable[[str], object]) -> Reads[bool]:
        while (character := (yield from self.peek())) and character not in ",]}" + SPACES:
            sink(character)
            self._at += 1
        return bool(character)
