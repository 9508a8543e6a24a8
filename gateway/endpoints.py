"""The generation routes, as plain ASGI: from a request's head to the last byte of its reply."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from gateway.asked import OVERDUE, Asked
from gateway.bodies import Bodies, Body, HeldBody, check_media, parse
from gateway.chat_completions import ChatChunks, ChatReply
from gateway.client import Client
from gateway.generate import Answer, Generator
from gateway.inflight import ClientGone
from gateway.queries import check_query
from gateway.refusals import refuse
from gateway.replies import EmbeddingReply, Reply, StreamReply
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.completion import CompletionRequest
from gateway.schemas.embedding import EmbeddingRequest
from gateway.text_completions import CompletionChunks, CompletionReply
from shared.errors import DeadlineExceeded, TokenbusError
from shared.logging import get_logger

log = get_logger(__name__)

Submit = Callable[[Body, Asked], Awaitable[Answer]]
Accepted = TypeVar("Accepted")


class Acceptance(Protocol):
    """The gateway, as far as an endpoint knows it."""

    generator: Generator
    request_timeout: float

    async def accept(self, act: Callable[[], Awaitable[Accepted]]) -> Accepted: ...

    async def route(self, name: str, user: str | None, client: Client) -> str:
        """The model that a request for `name` goes to. Waits until it is loaded."""


class Endpoint(Generic[Body]):
    """Whatever goes wrong is answered in the shape of the path's errors."""

    def __init__(
        self,
        gateway: Acceptance,
        bodies: Bodies,
        schema: type[Body],
        submit: Submit[Body],
        reply: Callable[[Body, Answer], Reply],
        describe: Callable[[], Awaitable[None]],
    ) -> None:
        self._gateway = gateway
        self._bodies = bodies
        self.schema = schema
        self._submit = submit
        self._reply = reply
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = HeldBody(self._bodies)
        try:
            reply = await self._accepted(scope, receive, held)
            await reply.write(send, scope["state"]["client"])
        except ClientGone:
            pass
        except TokenbusError as error:
            await refuse(scope, send, error)
        except Exception:
            log.exception("a request failed")
            # In the middle of a stream that is refused, and the server closes the connection.
            await refuse(scope, send, TokenbusError("The server had an error while processing your request."))
        finally:
            held.release()

    async def _accepted(self, scope: Scope, receive: Receive, held: HeldBody) -> Reply:
        """A request from its head to its place in the queue. Its deadline counts from the head: a body that trickles in
        or a bus that does not answer take from it."""
        asked: Asked = scope["state"]["asked"]
        asked.end_within(self._gateway.request_timeout)
        timeout = asyncio.timeout(asked.deadline - time.monotonic())
        try:
            async with timeout:
                check_query(scope["query_string"])
                check_media(scope["state"]["head"])
                raw = await held.read(receive, scope["state"]["head"].get(b"content-length", b""))
                body = parse(raw, self.schema)
                asked.body, asked.size = hash(raw), len(raw)
                asked.model = await self._gateway.route(body.model, body.end_user, scope["state"]["client"])
                answer = await self._gateway.accept(partial(self._submit, body, asked))
        except TimeoutError:
            if timeout.expired():
                raise DeadlineExceeded(OVERDUE) from None
            raise
        try:
            return self._reply(body, answer)
        except BaseException:
            answer.close()
            raise

    def route(self, path: str) -> APIRoute:
        """For FastAPI's router, and for the description of the API, which looks at `schema`."""
        route = APIRoute(path, self._describe, methods=["POST"])
        route.app = self
        return route


def generation_endpoints(gateway: Acceptance, bodies: Bodies) -> dict[str, Endpoint[Any]]:
    """By path."""
    generator = gateway.generator

    def chat_reply(body: ChatCompletionRequest, answer: Answer) -> Reply:
        if body.stream:
            return StreamReply(answer, ChatChunks, include_usage=body.include_usage)
        return ChatReply(answer, logprobs=bool(body.logprobs))

    def completion_reply(body: CompletionRequest, answer: Answer) -> Reply:
        if body.stream:
            return StreamReply(answer, CompletionChunks, include_usage=body.include_usage)
        returned = body.n or 1
        return CompletionReply(
            answer, candidates=body.candidates, returned=returned, logprobs=body.logprobs is not None
        )

    def embeddings_reply(body: EmbeddingRequest, answer: Answer) -> Reply:
        return EmbeddingReply(answer, body.encoding_format or "float")

    async def chat_completions() -> None:
        """The next message of a conversation; with `stream`, as server-sent events."""

    async def completions() -> None:
        """The continuation of each prompt; with `stream`, as server-sent events."""

    async def embeddings() -> None:
        """A vector for each input."""

    return {
        "/v1/chat/completions": Endpoint(
            gateway, bodies, ChatCompletionRequest, generator.chat, chat_reply, chat_completions
        ),
        "/v1/completions": Endpoint(
            gateway, bodies, CompletionRequest, generator.completion, completion_reply, completions
        ),
        "/v1/embeddings": Endpoint(
            gateway, bodies, EmbeddingRequest, generator.embedding, embeddings_reply, embeddings
        ),
    }
