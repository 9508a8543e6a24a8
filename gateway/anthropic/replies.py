"""What a client of the Messages API gets: a message, whole or as events, or the count of its tokens."""

from typing import Any

from gateway.anthropic.blocks import Content, ContentBlocks, stop_reason
from gateway.anthropic.errors import error_body
from gateway.generate import Answer
from gateway.inflight import Update
from gateway.replies import WholeReply
from gateway.templates import EventTemplate, typed_event
from shared.errors import TokenbusError


def usage_of(usage: dict[str, Any]) -> dict[str, Any]:
    """From OpenAI's object: there cached tokens are part of the prompt's, here they stand beside them."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"thinking_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
    }


def message(id: str, model: str) -> dict[str, Any]:
    """One that nothing is said in yet. How long the prompt is, only its worker knows: it is told at the end."""
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }


class MessageReply(WholeReply):
    def __init__(self, answer: Answer, *, shows_thinking: bool = True) -> None:
        super().__init__(answer)
        self._blocks = ContentBlocks(answer.id, shows_thinking=shows_thinking)
        self._content = Content()
        self._reason: str | None = None
        self._stop: str | None = None

    def collect(self, update: Update) -> None:
        self._content.take(self._blocks.take(update))
        self._reason = update.finish_reason or self._reason
        self._stop = update.stop or self._stop

    def result(self) -> dict[str, Any]:
        return message(self.answer.id, self.answer.model) | {
            "content": self._content.whole(),
            "stop_reason": stop_reason(self._reason, self._stop, self._blocks.has_called),
            "stop_sequence": self._stop,
            "usage": usage_of(self.answer.usage()),
        }


class MessageEvents(EventTemplate):
    KEEP_ALIVE = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, *, id: str, model: str, shows_thinking: bool = True, **_: Any) -> None:
        self._message = message(id, model)
        self._blocks = ContentBlocks(id, shows_thinking=shows_thinking)
        self._reason: str | None = None
        self._stop: str | None = None

    def opening(self) -> bytes:
        return typed_event({"type": "message_start", "message": self._message})

    def update(self, update: Update) -> bytes:
        self._reason, self._stop = update.finish_reason, update.stop
        return b"".join(map(typed_event, self._blocks.take(update)))

    def ending(self, usage: dict[str, Any]) -> bytes:
        delta = {
            "stop_reason": stop_reason(self._reason, self._stop, self._blocks.has_called),
            "stop_sequence": self._stop,
        }
        end = {"type": "message_delta", "delta": delta, "usage": usage_of(usage)}
        return b"".join(map(typed_event, (*self._blocks.end(), end, {"type": "message_stop"})))

    def error(self, error: TokenbusError) -> bytes:
        return typed_event(error_body(error))
