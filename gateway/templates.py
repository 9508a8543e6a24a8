"""Server-sent events from byte templates: what is the same in all chunks of a choice is encoded once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import orjson

from gateway.inflight import Update
from shared.errors import TokenbusError

DONE = b"data: [DONE]\n\n"


def event(body: Any) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def typed_event(body: dict[str, Any]) -> bytes:
    """One that is called by its type too."""
    return b"event: %b\ndata: %b\n\n" % (body["type"].encode(), orjson.dumps(body))


class EventTemplate(ABC):
    """The events of one streamed answer, in the order of these methods."""

    KEEP_ALIVE: ClassVar[bytes] = b": keep-alive\n\n"

    def opening(self) -> bytes:
        """What comes before all else."""
        return b""

    @abstractmethod
    def update(self, update: Update) -> bytes:
        """All that is in it, and the finish, if it is there."""

    @abstractmethod
    def ending(self, usage: dict[str, Any]) -> bytes:
        """What comes after the last update; `usage` is OpenAI's object."""

    @abstractmethod
    def error(self, error: TokenbusError) -> bytes:
        """In the place of all that would still come."""


class ChunkTemplate(EventTemplate):
    """OpenAI's chunks."""

    OBJECT: ClassVar[str]
    BEFORE_TEXT: ClassVar[bytes]
    AFTER_TEXT: ClassVar[bytes]
    NO_TEXT: ClassVar[bytes]

    def __init__(self, *, id: str, created: int, model: str, choices: int, include_usage: bool) -> None:
        self._id = id
        self._include_usage = include_usage
        self._envelope = {"id": id, "object": self.OBJECT, "created": created, "model": model}
        self._end = b"}]" + (b',"usage":null' if include_usage else b"") + b"}\n\n"
        envelope = b"data: " + orjson.dumps(self._envelope)[:-1]
        self._heads = [envelope + b',"choices":[{"index":%d,' % index for index in range(choices)]
        self._before_text = [head + self.BEFORE_TEXT for head in self._heads]
        self._after_text = self.AFTER_TEXT + b',"logprobs":null,"finish_reason":null' + self._end

    def update(self, update: Update) -> bytes:
        chunk = b""
        if update.logprobs or update.reasoning or update.tool_calls or update.prompt_logprobs:
            chunk = b"".join(self._chunk(update.index, parts) for parts in self._parts(update))
        elif update.text:
            chunk = self._before_text[update.index] + orjson.dumps(update.text) + self._after_text
        if update.finish_reason is not None:
            chunk += self._finish(update.index, self._reason(update))
        return chunk

    @abstractmethod
    def _parts(self, update: Update) -> Iterator[dict[str, Any]]:
        """What is in an update besides text, as choices with the fields that they do not share with all others."""

    def _reason(self, update: Update) -> str:
        return update.finish_reason or ""

    def _chunk(self, index: int, parts: dict[str, Any]) -> bytes:
        return self._heads[index] + orjson.dumps(parts | {"finish_reason": None})[1:-1] + self._end

    def _finish(self, index: int, reason: str) -> bytes:
        finish = b',"logprobs":null,"finish_reason":"%s"' % reason.encode()
        return self._heads[index] + self.NO_TEXT + finish + self._end

    def ending(self, usage: dict[str, Any]) -> bytes:
        return self.usage(usage) + DONE

    def error(self, error: TokenbusError) -> bytes:
        return event(error.body())

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that asked for it."""
        return event(self._envelope | {"choices": [], "usage": usage}) if self._include_usage else b""
