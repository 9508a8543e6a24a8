"""A link that is dead without having been closed: nobody waits on it for ever."""

import asyncio
from collections.abc import Iterator

import pytest

from shared import connection
from shared.connection import BUS_ERRORS, Hearing, connect, listen
from tests.conftest import wait_until
from tests.link import Link


@pytest.fixture
def link(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    monkeypatch.setattr(connection, "ANSWERED_WITHIN_S", 0.3)
    monkeypatch.setattr(connection, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(connection, "DEAF_AFTER_S", 0.4)
    link = Link(redis_url)
    yield link
    link.close()


async def test_a_command_on_a_dead_link_ends_with_an_error(link: Link) -> None:
    client = connect(link.url)
    assert await client.ping()
    link.cut()
    for command in (client.ping(), client.xread({"s": "0"}, block=100)):
        with pytest.raises(BUS_ERRORS):
            async with asyncio.timeout(10):
                await command
    await client.aclose()


async def test_a_subscription_on_a_dead_link_is_made_anew(link: Link, redis_url: str) -> None:
    client, other = connect(link.url), connect(redis_url)
    hearing, heard = Hearing(), list[bytes]()
    task = asyncio.create_task(listen(client, "channel", heard.append, hearing), name="listen")
    await hearing.wait()
    for quiet in range(3):  # a quiet channel is no dead link
        await asyncio.sleep(0.3)
        assert hearing.is_set(), quiet
    link.cut()
    await wait_until(lambda: not hearing.is_set(), description="it notices")
    link.heal()
    await hearing.wait()

    async def arrives() -> bool:
        await other.publish("channel", "again")
        return b"again" in heard

    await wait_until(arrives, description="it hears again")
    task.cancel()
    await asyncio.wait({task})
    await client.aclose()
    await other.aclose()
