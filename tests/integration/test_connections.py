"""A client that asks and does not read holds nothing for ever."""

import asyncio
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


@pytest.fixture
async def endless(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(connections, "STALLED_S", 0.5)
    app, port = Endless(), free_port()
    config = uvicorn.Config(
        app, port=port, lifespan="off", log_config=None, http=Door(10).connection, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    serving = asyncio.create_task(server.serve(), name="server")
    await wait_until(lambda: server.started, description="it serves")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    yield app, reader
    writer.close()
    server.should_exit = True
    await serving


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
