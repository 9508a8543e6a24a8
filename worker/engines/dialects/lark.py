"""Grammars for llguidance, in its variant of Lark: of a reply that may or must hold tool calls, thoughts, or a
structure. https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer

from worker.engines.dialects.tools import Tool

ANYTHING = "(?s:.*)"
MOST_CALLS = 16  # in a reply that obeys a grammar: a small model repeats itself until something stops it


class Markers:
    """Which texts are one token for llguidance: added tokens that are special, or written <...>.

    It never takes such a token for its text, so that a grammar must name it; any other text is a literal.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        bracketed = {token.content: id for id, token in added.items() if re.fullmatch("<.*>", token.content)}
        self._tokens = bracketed | self._special

    def keep(self, texts: Iterable[str]) -> frozenset[int]:
        """The ids of those that would not appear in a reply's text."""
        return frozenset(self._special[text] for text in texts if text in self._special)

    def token(self, text: str) -> int | None:
        return self._tokens.get(text)


class Lark:
    """A grammar's rules as they gather."""

    def __init__(self, markers: Markers) -> None:
        self._markers = markers
        self._rules: dict[str, str] = {}

    def rule(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def literal(self, text: str) -> str:
        return json.dumps(text)

    def marker(self, text: str) -> str:
        token = self._markers.token(text)
        return self.literal(text) if token is None else f"<[{token}]>"

    def has_token(self, text: str) -> bool:
        return self._markers.token(text) is not None

    def json(self, name: str, schema: object) -> str:
        return self.rule(name, "%json " + json.dumps(schema))

    def text_without(self, marker: str, name: str, *others: str) -> str:
        """Any text that does not hold the marker. Beside `text_then`, which ends at the marker if that is no token."""
        texts = (marker, *others) if self.has_token(marker) else others
        return self.rule(name.upper(), f"/{ANYTHING}/{without(*texts)}")

    def text_then(self, marker: str, name: str, *others: str) -> str:
        """Any text up to a marker, and the marker."""
        if self.has_token(marker):
            return f"{self.text_without(marker, name, *others)} {self.marker(marker)}"
        self.rule(f"{name}[lazy]", f"/{ANYTHING}{_regex(marker)}/")
        return name

    def __str__(self) -> str:
        return "\n".join(f"{name}: {body}" for name, body in self._rules.items()) + "\n"


def without(*texts: str) -> str:
    """What excludes them from the regular expression that it stands behind."""
    return "".join(f" & ~/{ANYTHING}{_regex(text)}{ANYTHING}/" for text in texts)


def one_or_more(call: str, separator: str, *, once: bool) -> str:
    return call if once else f"{call} ({separator} {call}){{0,{MOST_CALLS - 1}}}"


def alternatives(bodies: Iterable[str]) -> str:
    return "(" + " | ".join(bodies) + ")"


def call_objects(lark: Lark, tools: Iterable[Tool], arguments: str) -> str:
    """Any of the calls as a JSON object; `arguments` is the key of its arguments."""
    return alternatives(
        " ".join(
            (
                lark.literal(f'{{"name": {json.dumps(tool.name)}, "{arguments}": '),
                lark.json(f"arguments_{number}", tool.schema),
                lark.literal("}"),
            )
        )
        for number, tool in enumerate(tools)
    )


def listed_objects(lark: Lark, tools: Iterable[Tool], *, once: bool) -> str:
    """A list of such objects."""
    call = lark.rule("call", call_objects(lark, tools, "arguments"))
    return f'"[" {one_or_more(call, lark.literal(", "), once=once)} "]"'


def _regex(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
