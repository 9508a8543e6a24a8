"""Answers, written by ASGI messages. Headers wait for the first update or failure, so that what only a worker can know
is a plain HTTP error; and a client that leaves, streaming or not, closes its answer at once."""

import asyncio
import base64
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import orjson
from starlette.responses import Response
from starlette.types import Send

from gateway.client import Client
from gateway.generate import Answer
from gateway.inflight import ClientGone, Update
from gateway.templates import EventTemplate
from shared.errors import TokenbusError

KEEP_ALIVE_S = 15.0

Headers = list[tuple[bytes, bytes]]


def error_parts(error: TokenbusError, shaped: dict[str, Any] | None = None) -> tuple[Headers, bytes]:
    """The headers and the body that tell of it; `shaped`: the body, if it is not OpenAI's."""
    headers, body = _json_headers(content := orjson.dumps(shaped or error.body())), content
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
        # OpenAI's library prefers it
        headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(error.retry_after * 1000))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers, body


def _json_headers(body: bytes) -> Headers:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]


def json_response(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def error_response(error: TokenbusError, shaped: dict[str, Any] | None = None) -> Response:
    headers, body = error_parts(error, shaped)
    response = Response(body, error.status)
    response.raw_headers = headers
    return response


async def send_error(send: Send, error: TokenbusError, shaped: dict[str, Any] | None = None) -> None:
    headers, body = error_parts(error, shaped)
    await _send_whole(send, error.status, headers, body)


async def send_json(send: Send, content: Any) -> None:
    body = orjson.dumps(content)
    await _send_whole(send, 200, _json_headers(body), body)


async def _send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Reply(ABC):
    """What a client gets for its answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    async def write(self, send: Send, client: Client) -> None:
        """All of it. Raises the request's error as long as nothing was sent."""
        client.watch(self.answer.leave)
        try:
            await self._write(send)
        except ClientGone:
            pass
        finally:
            client.unwatch(self.answer.leave)
            self.answer.close()

    @abstractmethod
    async def _write(self, send: Send) -> None: ...


class WholeReply(Reply):
    """Collects every choice, then answers once."""

    async def _write(self, send: Send) -> None:
        while not self.answer.has_ended:
            for update in await self.answer.updates():
                self.collect(update)
        await send_json(send, self.result())

    @abstractmethod
    def collect(self, update: Update) -> None: ...

    @abstractmethod
    def result(self) -> dict[str, Any]: ...


class EmbeddingReply(WholeReply):
    """Embeddings in the order of their inputs; each job made a part of them."""

    def __init__(self, answer: Answer, encoding: Literal["float", "base64"]) -> None:
        super().__init__(answer)
        self._encoding = encoding
        self._parts: dict[int, list[str]] = {}

    def collect(self, update: Update) -> None:
        if update.embeddings:
            self._parts[update.index] = update.embeddings

    def result(self) -> dict[str, Any]:
        vectors = [vector for index in range(self.answer.choices) for vector in self._parts[index]]
        usage = self.answer.usage()
        return {
            "object": "list",
            "model": self.answer.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": self._encode(vector)}
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["total_tokens"]},
        }

    def _encode(self, vector: str) -> str | list[float]:
        if self._encoding == "base64":
            return vector
        raw = base64.b64decode(vector)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))


class StreamReply(Reply):
    """Server-sent events. An error before the first update is a plain HTTP error; after it, one error event. Where
    nobody should wait for the first update (`waits`), all errors are events."""

    HEADERS = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # or nginx would hold the stream back
    )

    def __init__(
        self, answer: Answer, events: Callable[..., EventTemplate], *, include_usage: bool, waits: bool = True
    ) -> None:
        super().__init__(answer)
        self._waits = waits
        self._template = events(
            id=answer.id,
            created=answer.created,
            model=answer.model,
            choices=answer.choices,
            include_usage=include_usage,
        )
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()

    async def _write(self, send: Send) -> None:
        updates = await self.answer.updates() if self._waits else []
        await send({"type": "http.response.start", "status": 200, "headers": self.HEADERS})
        self._next_beat = self._loop.call_later(KEEP_ALIVE_S, self._beat)
        try:
            await self._events(updates, send)
        finally:
            self._next_beat.cancel()

    async def _events(self, updates: list[Update], send: Send) -> None:
        answer, template = self.answer, self._template
        chunk = template.opening()
        try:
            while not answer.has_ended:
                chunk += b"".join(map(template.update, updates)) if updates else template.KEEP_ALIVE
                if chunk:  # there is none while text is held back
                    self._sent_at = self._loop.time()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    chunk = b""
                updates = await answer.updates()
        except TokenbusError as error:
            last = template.error(error)
        else:
            last = b"".join(map(template.update, updates)) + template.ending(answer.usage())
        await send({"type": "http.response.body", "body": chunk + last})

    def _beat(self) -> None:
        """Proxies and clients drop a connection that is silent for long, as one is in a long queue or prefill."""
        left = self._sent_at + KEEP_ALIVE_S - self._loop.time()
        if left <= 0:
            self.answer.mailbox.wake()
        self._next_beat = self._loop.call_later(left if left > 0 else KEEP_ALIVE_S, self._beat)
