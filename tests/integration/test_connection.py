"""A link that is dead without having been closed: nobody waits on it for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from shared import connection
from shared.connection import BUS_ERRORS, Hearing, connect, listen
from tests.conftest import wait_until


class Link:
    """A relay to a server that can fall silent without closing anything."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._open = asyncio.Event()
        self._open.set()
        self.url = ""

    def cut(self) -> None:
        self._open.clear()

    @asynccontextmanager
    async def relaying(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
                relays = [
                    tasks.create_task(self._relay(reader, far_writer), name="there"),
                    tasks.create_task(self._relay(far_reader, writer), name="back"),
                ]
                await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
                for end in (writer, far_writer):
                    end.close()

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield
            server.close()
            self._open.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)


@pytest.fixture
def link(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr(connection, "ANSWERED_WITHIN_S", 0.3)
    monkeypatch.setattr(connection, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(connection, "DEAF_AFTER_S", 0.4)
    return Link(int(redis_url.rpartition(":")[2]))


async def test_a_command_on_a_dead_link_ends_with_an_error(link: Link) -> None:
    async with link.relaying():
        client = connect(link.url)
        assert await client.ping()
        link.cut()
        for command in (client.ping(), client.xread({"s": "0"}, block=100)):
            with pytest.raises(BUS_ERRORS):
                async with asyncio.timeout(10):
                    await command
        await client.aclose()


async def test_a_subscription_on_a_dead_link_is_made_anew(link: Link, redis_url: str) -> None:
    async with link.relaying():
        client, other = connect(link.url), connect(redis_url)
        hearing, heard = Hearing(), list[bytes]()
        task = asyncio.create_task(listen(client, "channel", heard.append, hearing), name="listen")
        await hearing.wait()
        for quiet in range(3):  # a quiet channel is no dead link
            await asyncio.sleep(0.3)
            assert hearing.is_set(), quiet
        link.cut()
        await wait_until(lambda: not hearing.is_set(), description="it notices")
        link._open.set()
        await hearing.wait()

        async def arrives() -> bool:
            await other.publish("channel", "again")
            return b"again" in heard

        await wait_until(arrives, description="it hears again")
        task.cancel()
        await asyncio.wait({task})
        await client.aclose()
        await other.aclose()
