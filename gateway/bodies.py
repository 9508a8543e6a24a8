"""Request bodies: read within their limits, and validated once."""

import random
from typing import TypeVar

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from gateway.schemas.base import Unsupported
from shared.errors import BodyTooLarge, InvalidRequest, QueueFull, UnsupportedParameter

Body = TypeVar("Body", bound=BaseModel)


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
    """Raises InvalidRequest with the parameter that is wrong."""
    try:
        return schema.model_validate(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}") from None
    except Unsupported as error:
        raise UnsupportedParameter(str(error), param=error.param) from None
    except ValidationError as error:
        raise _invalid(error) from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None


def invalid_query(error: RequestValidationError) -> InvalidRequest:
    """Of a parameter in a path or its query."""
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return InvalidRequest(f"Invalid value for '{name}': {first['msg']}", param=name)


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = [str(part) for part in first["loc"]]
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"Unrecognized request argument supplied: {'.'.join(path)}", param=path[0])
    if not path:
        return InvalidRequest(reason)
    return InvalidRequest(f"Invalid value for '{'.'.join(path[:3])}': {reason}", param=path[0])
