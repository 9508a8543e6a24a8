"""Answers as ASGI responses. Headers wait for the first update or failure, so that what only a worker can know is a
plain HTTP error; and a client that leaves, streaming or not, closes its answer at once."""

import asyncio
import base64
import math
import struct
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.generate import Answer
from gateway.inflight import ClientGone, Update
from gateway.templates import DONE, KEEP_ALIVE, ChunkTemplate, event
from shared.errors import TokenbusError

KEEP_ALIVE_S = 15.0


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def error_response(error: TokenbusError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        headers["Retry-After-Ms"] = str(max(1, math.ceil(error.retry_after * 1000)))  # OpenAI's library prefers it
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(error.body(), error.status, headers)


class AnswerResponse(Response):
    """Runs `respond` beside a watch on the client."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch(receive), name="client")
                try:
                    await self.respond(scope, receive, send)
                except ClientGone:
                    pass
                finally:
                    watch.cancel()
        finally:
            self.answer.close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.answer.mailbox.close()
        self.answer.close()

    @abstractmethod
    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class WholeResponse(AnswerResponse):
    """Collects every choice, then answers once."""

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async for updates in self.answer.updates():
                for update in updates:
                    self.collect(update)
            response = json_response(self.result())
        except TokenbusError as error:
            response = error_response(error)
        await response(scope, receive, send)

    @abstractmethod
    def collect(self, update: Update) -> None: ...

    @abstractmethod
    def result(self) -> dict[str, Any]: ...


class TextResponse(WholeResponse):
    """A chat completion or a text completion."""

    def __init__(self, answer: Answer, *, chat: bool) -> None:
        super().__init__(answer)
        self._chat = chat
        self._texts: list[list[str]] = [[] for _ in range(answer.choices)]
        self._reasons: list[str | None] = [None] * answer.choices

    def collect(self, update: Update) -> None:
        self._texts[update.index].append(update.text)
        self._reasons[update.index] = update.finish_reason or self._reasons[update.index]

    def result(self) -> dict[str, Any]:
        answer = self.answer
        return {
            "id": answer.id,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [
                {"index": index, **self._content("".join(texts)), "logprobs": None, "finish_reason": reason}
                for index, (texts, reason) in enumerate(zip(self._texts, self._reasons, strict=True))
            ],
            "usage": answer.usage(),
        }

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}


class EmbeddingResponse(WholeResponse):
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


class StreamResponse(AnswerResponse):
    """Server-sent events. An error before the first update is a plain HTTP error; after it, one error event."""

    HEADERS = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # or nginx would hold the stream back
    )

    def __init__(self, answer: Answer, *, chat: bool, include_usage: bool) -> None:
        super().__init__(answer)
        self._chat = chat
        self._template = ChunkTemplate(
            chat=chat,
            id=answer.id,
            created=answer.created,
            model=answer.model,
            choices=answer.choices,
            include_usage=include_usage,
        )

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        updates = self.answer.updates()
        try:
            first = await anext(updates)
        except TokenbusError as error:
            await error_response(error)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": list(self.HEADERS)})
        async with asyncio.TaskGroup() as tasks:
            keep_alive = tasks.create_task(self._keep_alive(send), name="keep-alive")
            try:
                roles = [self._template.role(index) for index in range(self.answer.choices)] if self._chat else []
                await send(_part(b"".join((*roles, *map(self._template.update, first)))))
                await send(_part(await self._rest(updates, send)))
            finally:
                keep_alive.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _rest(self, updates: Any, send: Send) -> bytes:
        """Streams up to the last chunk; returns what ends the stream."""
        try:
            async for batch in updates:
                if chunk := b"".join(map(self._template.update, batch)):
                    await send(_part(chunk))
        except TokenbusError as error:
            return event(error.body())
        except ClientGone:
            return b""
        return self._template.usage(self.answer.usage()) + DONE

    async def _keep_alive(self, send: Send) -> None:
        """Proxies and clients drop a connection that is silent for long, as one is in a long queue or prefill."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            await send(_part(KEEP_ALIVE))


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}
