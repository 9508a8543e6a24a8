"""Connections, at most so many: uvicorn's own limit counts no idle ones and answers in plain text."""

import asyncio
import resource
import secrets
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.client import Client
from gateway.replies import error_parts
from shared.errors import HeadTooLarge, InvalidRequest, TokenbusError, TooManyConnections
from shared.logging import get_logger

log = get_logger(__name__)

OTHER_FILES = 512  # besides clients' connections: Redis, logs, and those that are being refused
REFUSED_AT_ONCE = 256
LARGEST_HEAD = 64 * 1024  # bytes of request line and headers
STALLED_S = 120.0  # that a client may leave what it asked for unread
PIPELINED = 16  # requests that may wait for their turn
LINGER_S = 1.0  # closed at once, with the client's request unread, a connection would lose the answer


class Door:
    """How many connections may be open, and which are being refused."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused: set[Connection] = set()

    def connection(self, **uvicorn: Any) -> "Connection":
        return Connection(self, **uvicorn)


class HeadWithBody:
    """A transport that sends the head of a response together with what is written next, or at the end of this turn of
    the loop: uvicorn writes them one by one, and each write is a call to the kernel."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """Besides uvicorn's: beyond the limit it says so and closes; a head has to come within the keep-alive time, be it
    the first one or the next; and a client that reads nothing is cut off, or it would be waited for for ever."""

    def __init__(self, door: Door, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._door = door
        self._head_by = self.loop.time() + self.timeout_keep_alive
        self._head = 0  # bytes of the head that is being read
        self._parsed = 0  # heads and messages that are complete
        self._cut_off: asyncio.TimerHandle | None = None
        self._client = Client()
        self._answered: Any = None  # uvicorn's cycle of the request that is being answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        if len(self.connections) >= self._door.limit:
            self._refuse(TooManyConnections("The server has too many open connections; try again.", retry_after=2))
            return
        super().connection_made(HeadWithBody(transport, self.loop))  # type: ignore[arg-type]
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.refused.discard(self)
        self._unset_keepalive_if_required()
        self._keep()
        if self._answered is not None:  # uvicorn tells only the last of a pipeline
            self._answered.disconnected = True
        super().connection_lost(exc)
        self._client.leave()

    def pause_writing(self) -> None:
        self._cut_off = self.loop.call_later(STALLED_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._keep()
        super().resume_writing()

    def _keep(self) -> None:
        if self._cut_off is not None:
            self._cut_off.cancel()

    def data_received(self, data: bytes) -> None:
        if self in self._door.refused:
            return
        parsed = self._parsed
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        if parsed != self._parsed or self._parsed % 2:  # within a body, or past one
            self._head = 0
            return
        self._head += len(data)
        if self._head > LARGEST_HEAD and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"The request's headers are larger than {LARGEST_HEAD} bytes."))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["client"] = self._client

    def on_headers_complete(self) -> None:
        self._parsed += 1
        super().on_headers_complete()
        self._read_on()

    def on_message_complete(self) -> None:
        self._parsed += 1
        super().on_message_complete()
        self._read_on()

    def _read_on(self) -> None:
        """uvicorn pauses for a long body and for a pipeline, until somebody asks for more: meanwhile nobody would see
        that the client leaves."""
        if len(self.pipeline) < PIPELINED:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg))

    def on_response_complete(self) -> None:
        self._head_by = self.loop.time() + self.timeout_keep_alive
        super().on_response_complete()

    def _wait_for_head(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_at(self._head_by, self.timeout_keep_alive_handler)

    def _refuse(self, error: TokenbusError) -> None:
        """In the middle of an answer there is no saying it."""
        is_answering = self._answered is not None and not self._answered.response_complete
        if is_answering or len(self._door.refused) >= REFUSED_AT_ONCE:
            self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._door.refused.add(self)
        self.transport.write(_refusal(error))
        self.transport.write_eof()
        self.timeout_keep_alive_task = self.loop.call_later(LINGER_S, self.transport.abort)


def _refusal(error: TokenbusError) -> bytes:
    headers, body = error_parts(error)
    headers += [(b"connection", b"close"), (b"x-request-id", b"req-" + secrets.token_hex(16).encode())]
    status = b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode())
    return b"\r\n".join([status, *(b": ".join(header) for header in headers), b"", body])


def that_fit(connections: int) -> int:
    """So many connections, or what the limit of open files allows; the soft one is raised for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_FILES
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        connections = max(1, allowed - OTHER_FILES)
        log.warning("only %d connections: the hard limit of open files is %d (ulimit -Hn)", connections, hard)
    return connections
