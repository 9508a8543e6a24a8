"""What every request passes, in one look at its head: its id and its key. Then a generation endpoint, which is plain
ASGI since FastAPI's machinery would cost more than all the rest; or FastAPI, with everything else."""

import hmac
import re
import secrets
from collections.abc import Mapping, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.anthropic.errors import speaks_anthropic
from gateway.asked import RETRIES_HEADER, TIMEOUT_HEADER, Asked
from gateway.refusals import refuse
from shared.errors import InvalidApiKey

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})
_LOOKED_AT = frozenset(
    name.encode()
    for name in (
        "authorization",
        "content-encoding",
        "content-length",
        "content-type",
        "origin",
        "traceparent",
        "x-api-key",
        "x-request-id",
        RETRIES_HEADER,
        TIMEOUT_HEADER,
    )
)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # of W3C's version 00
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

Head = Mapping[bytes, bytes]


class Front:
    """Gives each request its id, and x-request-id in every answer: the client's own, if it sent a sound one. A key, as
    Bearer or x-api-key, is asked for on every route but health."""

    def __init__(
        self, app: ASGIApp, endpoints: Mapping[str, ASGIApp], *, api_keys: Sequence[str], allowed_origins: Sequence[str]
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._keys = [key.encode() for key in api_keys]
        self._for_browsers = CORSMiddleware(
            self._past_key,
            allow_origins=allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after", "retry-after-ms"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = {name: value for name, value in reversed(scope["headers"]) if name in _LOOKED_AT}  # the first counts
        asked = _asked(head)
        scope["state"]["asked"] = asked
        scope["state"]["head"] = head
        request_id = asked.request_id.encode()
        told = [(b"x-request-id", request_id)]
        if speaks_anthropic(scope["path"]):
            told.append((b"request-id", request_id))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        if b"origin" in head or scope["path"] not in self._endpoints:
            await self._for_browsers(scope, receive, send_with_id)
        else:
            await self._past_key(scope, receive, send_with_id)

    async def _past_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if self._keys and path not in OPEN_PATHS and not self._has_key(scope["state"]["head"]):
            why = "Incorrect API key provided. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            await refuse(scope, send, InvalidApiKey(why))
        elif scope["method"] == "POST" and (endpoint := self._endpoints.get(path)):
            await endpoint(scope, receive, send)
        else:
            # HEAD is GET whose body the server leaves out.
            await self._app({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, receive, send)

    def _has_key(self, head: Head) -> bool:
        scheme, _, bearer = head.get(b"authorization", b"").partition(b" ")
        given = [head.get(b"x-api-key", b"").strip()]
        if scheme.lower() == b"bearer":
            given.append(bearer.strip())
        # All are compared, so that the time tells nothing of which one was near.
        return any([hmac.compare_digest(key, known) for key in given for known in self._keys])


def _asked(head: Head) -> Asked:
    def text(name: str) -> str | None:
        value = head.get(name.encode())
        return None if value is None else value.decode("latin-1")

    own, trace = text("x-request-id"), text("traceparent")
    return Asked(
        secrets.token_hex(16),
        traceparent=trace if trace and _TRACEPARENT.fullmatch(trace) else None,
        own_id=own if own and _REQUEST_ID.fullmatch(own) else None,
        timeout=text(TIMEOUT_HEADER),
        first_try=head.get(RETRIES_HEADER.encode()) == b"0",
    )
