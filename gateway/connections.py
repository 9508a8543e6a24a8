"""Connections, at most so many: uvicorn's own limit counts no idle ones and answers in plain text."""

import asyncio
import resource
import secrets
from http import HTTPStatus
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
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
    the first one or the next; a client that reads nothing is cut off, or it would be waited for for ever; and what
    cannot be read is answered, after what came before it."""

    def __init__(self, door: Door, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._door = door
        self._head_by = self.loop.time() + self.timeout_keep_alive
        self._head = 0  # bytes of the head that is being read
        self._parsed = 0  # heads and messages that are complete
        self._cut_off: asyncio.TimerHandle | None = None
        self._client = Client()
        self._answered: Any = None  # uvicorn's cycle of the request that is being answered
        self._unreadable: TokenbusError | None = None  # what follows; nothing more is read then

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
        if self in self._door.refused or self._unreadable is not None:
            return
        parsed = self._parsed
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._unreadable is not None:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        if parsed != self._parsed or self._parsed % 2:  # within a body, or past one
            self._head = 0
            return
        self._head += len(data)
        if self._head > LARGEST_HEAD and not self.transport.is_closing():
            self._break_off(HeadTooLarge(f"The request's headers are larger than {LARGEST_HEAD} bytes."))

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._break_off(InvalidRequest("Invalid HTTP request received."))

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Who asks for another protocol, as Java's clients do for HTTP/2, is answered in this one (RFC 9110, 7.8). For
        the parser HTTP ended with that head, so another one reads it, without the question, and the body after it."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._break_off(InvalidRequest("CONNECT is not supported: this is no proxy."))
            return
        headers = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._parse(b"\r\n".join([b"%s %s HTTP/%s" % (method, self.url, version), *headers, b"", rest]))

    def _break_off(self, error: TokenbusError) -> None:
        """What follows cannot be read. What was asked for before is answered first."""
        self._unreadable = error
        if self.cycle is not None and self.cycle.more_body:
            self._forget_unread(self.cycle)
        self._refuse_unreadable()

    def _forget_unread(self, cycle: Any) -> None:
        """The request whose body cannot be read: the refusal is its answer, unless it has one."""
        if self.pipeline:
            self.pipeline.popleft()
        elif cycle.response_complete:
            self.transport.close()
        elif not cycle.response_started:
            self._answered = None
            cycle.disconnected = True  # so its task writes nothing
            cycle.message_event.set()

    def _refuse_unreadable(self) -> None:
        is_answering = self._answered is not None and not self._answered.response_complete
        if self._unreadable is not None and not is_answering and not self.transport.is_closing():
            self._refuse(self._unreadable)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["client"] = self._client

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # see _parse_without_upgrade
        self._parsed += 1
        super().on_headers_complete()
        self._read_on()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
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
        if cycle.waiting_for_100_continue:
            app = _ends_unless_read(app, cycle)
        if cycle.scope["http_version"] == "1.0":
            app = _unframed(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._head_by = self.loop.time() + self.timeout_keep_alive
        super().on_response_complete()
        self._refuse_unreadable()

    def _wait_for_head(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_at(self._head_by, self.timeout_keep_alive_handler)

    def _refuse(self, error: TokenbusError) -> None:
        if len(self._door.refused) >= REFUSED_AT_ONCE:
            self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._door.refused.add(self)
        self.transport.write(_refusal(error))
        self.transport.write_eof()
        self.timeout_keep_alive_task = self.loop.call_later(LINGER_S, self.transport.abort)


def _ends_unless_read(app: ASGIApp, cycle: Any) -> ASGIApp:
    """Of a request with 'Expect: 100-continue'. If its body was not asked for, nobody knows whether the client sends it
    all the same: the connection ends with the answer (RFC 9110, 10.1.1)."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_end(message: Message) -> None:
            if cycle.waiting_for_100_continue:
                cycle.keep_alive = False
            await send(message)

        await app(scope, receive, send_and_end)

    return answer


def _unframed(app: ASGIApp, cycle: Any) -> ASGIApp:
    """HTTP/1.0 has no chunks: an answer of unknown length ends with its connection (RFC 9112, 6.1). uvicorn sends
    chunks all the same, but where it leaves the body out; so that is sent from here."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_open = False

        async def send_unframed(message: Message) -> None:
            nonlocal is_open
            if message["type"] == "http.response.start" and cycle.scope["method"] != "HEAD":
                is_open = all(name != b"content-length" for name, _ in message.get("headers", ()))
                if is_open:
                    cycle.scope = {**cycle.scope, "method": "HEAD"}
            elif is_open and message.get("body") and not cycle.disconnected:
                cycle.transport.write(message["body"])
            await send(message)

        await app(scope, receive, send_unframed)

    return answer


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
