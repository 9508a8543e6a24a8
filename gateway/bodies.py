"""Request bodies: read within their limits, and validated once."""

import gc
import random
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError
from starlette.types import Receive

from gateway.schemas.base import Request, Unsupported
from gateway.schemas.wrong import wrong
from shared.errors import BodyTooLarge, InvalidRequest, QueueFull, UnsupportedMediaType, UnsupportedParameter

Body = TypeVar("Body", bound=Request)

LARGE = 2**20  # bytes of a body that is not parsed in a moment


def check_media(head: Mapping[bytes, bytes]) -> None:
    """A page may send any text to any server, but JSON only to one that allows it; so what is said to be something else
    is not read as JSON. Nothing said is fine. Raises UnsupportedMediaType."""
    kind = head.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind not in (b"application/json", b"") and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        given = kind.decode("latin-1")
        raise UnsupportedMediaType(f"The Content-Type must be application/json, not {given!r}.")
    coding = head.get(b"content-encoding", b"").strip().lower()
    if coding not in (b"identity", b""):
        given = coding.decode("latin-1")
        raise UnsupportedMediaType(f"The body must be sent as it is, without the Content-Encoding {given!r}.")


class Bodies:
    """The bodies of all open requests: at most `limit` bytes each and `total` together."""

    def __init__(self, limit: int, total: int) -> None:
        self._limit = limit
        self._total = total
        self._held = 0  # bytes: a body is held until its request ends, for a worker that dies

    def hold(self, size: int) -> None:
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size

    def check(self, size: int, held: int) -> None:
        """Of a body of `size` bytes, `held` of which are counted already. Raises BodyTooLarge, QueueFull."""
        if size > self._limit:
            raise BodyTooLarge(f"The request body is larger than {self._limit} bytes.")
        if size and self._held - held + size > self._total:
            message = "The server holds as many request bodies as it can; try again later."
            raise QueueFull(message, retry_after=random.uniform(1, 3))


class HeldBody:
    """One request's. `release` it when the request has ended."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    async def read(self, receive: Receive, announced: bytes) -> bytes:
        """413 and 429 as soon as the body is, or says that it is, too large. Raises BodyTooLarge, QueueFull, and
        InvalidRequest if its client left in the middle."""
        if announced.isdigit():
            self._bodies.check(int(announced), 0)
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise InvalidRequest("The request ended before its body did.")
            parts.append(message["body"])
            more = message["more_body"]
            self._size += len(parts[-1])
            self._bodies.hold(len(parts[-1]))
            self._bodies.check(self._size, self._size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self) -> None:
        self._bodies.release(self._size)


def parse(raw: bytes, schema: type[Body]) -> Body:
    """Raises InvalidRequest with the parameter that is wrong.

    The garbage collector looks through what is being made again and again: of a body of ten million lists that took six
    seconds instead of one, and the gateway lost its lease.
    """
    if len(raw) < LARGE:
        return _parsed(raw, schema)
    gc.disable()
    try:
        return _parsed(raw, schema)
    finally:
        gc.enable()


def _parsed(raw: bytes, schema: type[Body]) -> Body:
    body: Any = None
    try:
        body = orjson.loads(raw)
        return schema.model_validate(body)
    except orjson.JSONDecodeError as error:
        refusal = InvalidRequest(f"The request body is not valid JSON: {error}")
    except Unsupported as error:
        refusal = UnsupportedParameter(str(error), param=error.param)
    except ValidationError as error:
        message, param = wrong(error, body)
        refusal = InvalidRequest(message, param=param)
    except RecursionError:
        refusal = InvalidRequest("The request body is nested too deeply.")
    del body  # and not raised where it was caught: a traceback keeps what its frames have
    raise refusal
