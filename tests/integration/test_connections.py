"""Clients that do not read, and clients that never come to their point, hold nothing for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from gateway import connections
from gateway.connections import Door
from tests.conftest import free_port, wait_until

CHUNK = b"x" * 65536


class Endless:
    """Sends until its client is gone."""

    def __init__(self) -> None:
        self.sent = 0
        self.left = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(self._send(send), name="send")
            self.left = (await receive())["type"] == "http.disconnect"
            sending.cancel()

    async def _send(self, send: Any) -> None:
        while True:
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            self.sent += 1


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server with our limits."""
    port = free_port()
    config = uvicorn.Config(
        app, port=port, lifespan="off", log_config=None, http=Door(10).connection, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server.serve(), name="server")
    await wait_until(lambda: server.started, description="it serves")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await task


@pytest.fixture
async def endless(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Endless, asyncio.StreamReader]]:
    monkeypatch.setattr(connections, "STALLED_S", 0.5)
    app = Endless()
    async with serving(app) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        yield app, reader


@pytest.mark.parametrize("line", [b"x-more: " + b"y" * 1000 + b"\r\n", b"z" * 1000], ids=["headers", "one header"])
async def test_a_head_without_end_is_refused(line: bytes) -> None:
    async with serving(Endless()) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nx-long: ")
        for _ in range(connections.LARGEST_HEAD // len(line) + 2):
            writer.write(line)
        answer = await reader.read(1024)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b'"code":"headers_too_large"' in answer


async def test_garbage_is_refused_in_json() -> None:
    async with serving(Endless()) as (reader, writer):
        writer.write(b"what is this\r\n\r\n")
        answer = await reader.read(1024)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'"type":"invalid_request_error"' in answer


async def test_garbage_behind_a_request_is_refused_after_its_answer() -> None:
    goes_on = asyncio.Event()

    async def in_two_parts(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await goes_on.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with serving(in_two_parts) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"one")
        writer.write(b"what is this\r\n\r\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        goes_on.set()
        read = await reader.read()
    assert read.startswith(b"twoHTTP/1.1 400 Bad Request\r\n")


async def reads_all(scope: Any, receive: Any, send: Any) -> None:
    size = 0
    while (message := await receive()).get("more_body"):
        size += len(message["body"])
    size += len(message["body"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(str(size)))]})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def test_a_long_body_is_no_long_head() -> None:
    async with serving(reads_all) as (reader, writer):
        for size in (0, 10, 70_000, 200_000, 640_000, 1_000_000):
            head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
            writer.write(head + b"x" * size)
            assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
            await reader.readuntil(b"\r\n\r\n")
            assert int(await reader.readexactly(len(str(size)))) == size


async def test_a_client_that_reads_nothing_is_cut_off(endless: tuple[Endless, asyncio.StreamReader]) -> None:
    app, _ = endless
    await wait_until(lambda: app.sent, description="it is sent something")
    await wait_until(lambda: app.left, description="it is cut off")
    assert app.sent < 1000


async def test_a_client_that_reads_slowly_is_not(endless: tuple[Endless, asyncio.StreamReader]) -> None:
    app, reader = endless
    loop = asyncio.get_running_loop()
    until = loop.time() + 2
    while loop.time() < until:
        await reader.read(1 << 20)
        await asyncio.sleep(0.001)
    assert not app.left
