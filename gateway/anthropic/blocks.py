"""A reply as content blocks, one after the other: thinking, text, and one for each tool call."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import from_json

from gateway.inflight import Update

Event = dict[str, Any]

EMPTY: dict[str, Event] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},  # nothing here checks what comes back
}


def tool_use_id(message: str, index: int) -> str:
    """The same on every gateway: one may go on with what another began."""
    return "toolu_" + hashlib.blake2s(f"{message}-{index}".encode(), digest_size=12).hexdigest()


class ContentBlocks:
    """Turns updates into Anthropic's events, from the first content_block_start to the last content_block_stop. One
    block is open at a time."""

    def __init__(self, message: str, *, shows_thinking: bool = True) -> None:
        self._message = message
        self._shows_thinking = shows_thinking
        self._next = 0
        self._open: tuple[str, int] | None = None  # its type, and the number of its tool call
        self.has_called = False

    def take(self, update: Update) -> Iterator[Event]:
        if update.reasoning:
            yield from self._enter("thinking")
            if self._shows_thinking:
                yield self._delta({"type": "thinking_delta", "thinking": update.reasoning})
        if update.text:
            yield from self._enter("text")
            yield self._delta({"type": "text_delta", "text": update.text})
        for call in update.tool_calls:
            self.has_called = True
            yield from self._enter("tool_use", call.index, call.name)
            if call.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def end(self) -> Iterator[Event]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._next - 1}

    def _enter(self, kind: str, call: int = 0, name: str = "") -> Iterator[Event]:
        if self._open == (kind, call):
            return
        yield from self.end()
        self._open = (kind, call)
        self._next += 1
        block = EMPTY.get(kind) or {
            "type": "tool_use",
            "id": tool_use_id(self._message, call),
            "name": name,
            "input": {},
        }
        yield {"type": "content_block_start", "index": self._next - 1, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._next - 1, "delta": delta}


class Content:
    """The blocks that events make, as a client puts them together: so that a reply is the same, streamed or not."""

    def __init__(self) -> None:
        self._blocks: list[tuple[dict[str, Any], list[str]]] = []

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            if event["type"] == "content_block_start":
                self._blocks.append((event["content_block"], []))
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                piece = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
                self._blocks[event["index"]][1].append(piece)

    def whole(self) -> list[dict[str, Any]]:
        return [self._whole(block, "".join(pieces)) for block, pieces in self._blocks]

    def _whole(self, block: dict[str, Any], text: str) -> dict[str, Any]:
        kind = block["type"]
        return block | ({"input": tool_input(text)} if kind == "tool_use" else {kind: text})


def tool_input(arguments: str) -> dict[str, Any]:
    """Of a call that was cut off by max_tokens: as much as there is, as Anthropic's own libraries read it."""
    try:
        value = from_json(arguments, allow_partial="trailing-strings") if arguments else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def stop_reason(finish_reason: str | None, stop: str | None, has_called: bool) -> str:
    if stop is not None:
        return "stop_sequence"
    if finish_reason == "length":
        return "max_tokens"
    return "tool_use" if has_called else "end_turn"
