"""Server-sent events from byte templates: what is the same in all chunks of a choice is encoded once."""

from typing import Any

import orjson

from gateway.inflight import Update

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(body: Any) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


class ChunkTemplate:
    """The chunks of one streamed answer. `chat` chooses between the shapes of chat and of completions."""

    def __init__(self, *, chat: bool, id: str, created: int, model: str, choices: int, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._envelope = {
            "id": id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._end = b"}]" + (b',"usage":null' if include_usage else b"") + b"}\n\n"
        envelope = b"data: " + orjson.dumps(self._envelope)[:-1]
        self._heads = [envelope + b',"choices":[{"index":%d,' % index for index in range(choices)]
        before = b'"delta":{"content":' if chat else b'"text":'
        self._before_text = [head + before for head in self._heads]
        self._after_text = (b"}" if chat else b"") + b',"logprobs":null,"finish_reason":null' + self._end
        self._no_text = b'"delta":{}' if chat else b'"text":""'

    def role(self, index: int) -> bytes:
        """A chat choice's first chunk."""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return self._heads[index] + delta + self._end

    def update(self, update: Update) -> bytes:
        """Text, if there is any, and the finish, if it is there."""
        chunk = b""
        if update.text:
            chunk = self._before_text[update.index] + orjson.dumps(update.text) + self._after_text
        if update.finish_reason is not None:
            chunk += self._finish(update.index, update.finish_reason)
        return chunk

    def _finish(self, index: int, reason: str) -> bytes:
        finish = b',"logprobs":null,"finish_reason":"%s"' % reason.encode()
        return self._heads[index] + self._no_text + finish + self._end

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that asked for it."""
        return event(self._envelope | {"choices": [], "usage": usage}) if self._include_usage else b""
