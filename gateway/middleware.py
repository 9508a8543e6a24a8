"""What every request passes: its id, the key, the body limit. Plain ASGI, so that streams are not wrapped twice."""

import hmac
import random
import re
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.asked import RETRIES_HEADER, TIMEOUT_HEADER, Asked
from gateway.responses import error_response
from shared.errors import BodyTooLarge, InvalidApiKey, QueueFull, TokenbusError

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestId:
    """Gives each request its id, and x-request-id in every answer: the client's own, if it sent a sound one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own = headers.get("x-request-id", "")
        sound = own if _REQUEST_ID.fullmatch(own) else None
        asked = Asked(
            secrets.token_hex(16),
            headers.get("traceparent"),
            sound,
            headers.get(TIMEOUT_HEADER),
            first_try=headers.get(RETRIES_HEADER) == "0",
        )
        request_id = sound or f"req-{asked.hex}"
        scope.setdefault("state", {})["asked"] = asked

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class ApiKeys:
    """Bearer keys, compared in constant time, on every route but health."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["path"] in OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        error = InvalidApiKey("Incorrect API key provided. Send it as 'Authorization: Bearer KEY'.")
        await error_response(error)(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        key = given.strip().encode("latin-1")  # the bytes that were sent
        # All are compared, so that the time tells nothing of which one was near.
        matches = [hmac.compare_digest(key, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(matches)


class BodyLimit:
    """413 as soon as a body is, or says that it is, larger than `limit` bytes; 429 as soon as the bodies of all open
    requests together are larger than `total`."""

    def __init__(self, app: ASGIApp, limit: int, total: int) -> None:
        self._app = app
        self._limit = limit
        self._total = total
        self._held = 0  # bytes: a body is held until its request ends, for a worker that dies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if error := self._refusal(int(announced) if announced.isdigit() else 0, 0):
            await error_response(error)(scope, receive, send)
            return
        size = 0

        async def receive_some() -> Message:
            nonlocal size
            message = await receive()
            more = len(message.get("body", b""))
            size += more
            self._held += more
            if error := self._refusal(size, size):
                raise error  # where the body is read; the application answers it
            return message

        try:
            await self._app(scope, receive_some, send)
        finally:
            self._held -= size

    def _refusal(self, size: int, held: int) -> TokenbusError | None:
        """Of a body of `size` bytes, `held` of which are counted already."""
        if size > self._limit:
            return BodyTooLarge(f"The request body is larger than {self._limit} bytes.")
        if size and self._held - held + size > self._total:
            message = "The server holds as many request bodies as it can; try again later."
            return QueueFull(message, retry_after=random.uniform(1, 3))
        return None
