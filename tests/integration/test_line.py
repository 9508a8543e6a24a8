"""The connection that all tasks share, on both event loops: the command runs on asyncio's own."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.exceptions import AuthenticationError, ConnectionError, ResponseError

from shared import connection
from shared.connection import BUS_ERRORS, Bus, Hearing, connect, listen
from shared.line import Line
from shared.queue import script
from tests.conftest import BINARIES, RedisServer, wait_until
from tests.link import Link

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


@pytest.fixture
async def bus(valkey_url: str) -> AsyncIterator[Bus]:
    bus = connect(valkey_url)
    yield bus
    await bus.aclose()


async def test_everybody_gets_their_own_reply(bus: Bus) -> None:
    async def ask(number: int) -> None:
        text = b"%d " % number * (1 + number * 997 % 20_000)
        assert await bus.line.ask("ECHO", text) == text
        assert await bus.line.batch([("ECHO", number), ("ECHO", text)]) == [b"%d" % number, text]

    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(ask(number), name=f"ask {number}")
    (info,) = await bus.line.batch([("CLIENT", "LIST")])
    assert len(info.splitlines()) == 1  # one connection for all


async def test_a_reply_whose_asker_was_cancelled_is_nobody_elses(bus: Bus) -> None:
    asked = asyncio.ensure_future(bus.line.batch([("ECHO", "mine"), ("ECHO", "mine too")]))
    await asyncio.sleep(0)
    asked.cancel()
    assert await bus.line.ask("ECHO", "yours") == b"yours"


async def test_an_error_is_raised_once_all_replies_are_there(bus: Bus) -> None:
    await bus.line.ask("SET", "text", "a", "PX", 60_000)
    commands = [("INCR", "text"), ("PEXPIRE", "text", 50_000), ("NONSENSE",)]
    with pytest.raises(ResponseError, match="not an integer"):
        await bus.line.batch(commands)
    wrong, done, unknown = await bus.line.replies(commands)
    assert (type(wrong), done, type(unknown)) == (ResponseError, 1, ResponseError)
    assert await bus.line.batch([]) == []


async def test_who_waits_when_the_connection_is_lost_is_told_and_the_next_connects(bus: Bus) -> None:
    held = asyncio.ensure_future(bus.reading.ask("BLPOP", "nothing", 5))
    behind = asyncio.ensure_future(bus.reading.ask("PING"))
    await wait_until(lambda: bus.line.ask("CLIENT", "LIST"), description="connected")
    await wait_until(lambda: _blocked(bus), description="blocked")
    await bus.line.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    for one in (held, behind):
        with pytest.raises(ConnectionError):
            await one
    assert await bus.reading.ask("PING") == b"PONG"


async def _blocked(bus: Bus) -> bool:
    return b"cmd=blpop" in await bus.line.ask("CLIENT", "LIST")


async def test_a_script_that_redis_forgot_runs_all_the_same(bus: Bus) -> None:
    groups = script("groups")
    for _ in range(2):
        await bus.line.ask("SCRIPT", "FLUSH")
        await bus.line.run(groups, ["tokenbus:jobs:{m}:normal"], ["workers", ""])
    assert await bus.line.run(groups, ["tokenbus:jobs:{m}:normal"], ["workers", ""]) == 0


async def test_many_megabytes_pass_both_ways(bus: Bus) -> None:
    text = b"x" * 20_000_000
    assert await bus.line.ask("ECHO", text) == text


async def test_a_dead_link_ends_with_an_error(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWERED_WITHIN_S", 0.3)
    link = Link(valkey_url)
    bus = connect(link.url)
    assert await bus.line.ask("PING") == b"PONG"
    link.cut()
    with pytest.raises(BUS_ERRORS):
        async with asyncio.timeout(10):
            await bus.line.ask("PING")
    link.forget()
    assert await bus.line.ask("PING") == b"PONG"
    await bus.aclose()
    link.close()


async def test_asking_is_refused_while_nobody_listens_there(tmp_path: Path) -> None:
    server = RedisServer(BINARIES["valkey"], tmp_path, "--save", "")
    bus = connect(server.url)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await bus.line.ask("PING")
    server.start()
    assert await bus.line.ask("PING") == b"PONG"
    server.kill()
    await bus.aclose()


async def test_all_who_ask_wait_for_one_dial_and_are_told_the_same() -> None:
    dials = list[asyncio.Future[Any]]()

    async def dial() -> Any:
        dials.append(asyncio.get_running_loop().create_future())
        return await dials[-1]

    line = Line(dial, 10)
    for error in ("first", "second"):
        asked = [asyncio.ensure_future(line.ask("PING")) for _ in range(5)]
        await wait_until(lambda n=error: len(dials) == 1 + (n == "second"), description="dialled")
        asked.pop().cancel()  # the others wait on
        await asyncio.sleep(0)
        dials[-1].set_exception(ConnectionError(error))
        for one in asked:
            with pytest.raises(ConnectionError, match=error):
                await one
    asked = [asyncio.ensure_future(line.ask("PING")) for _ in range(2)]
    await wait_until(lambda: len(dials) == 3, description="dialled")
    line.close()
    for one in (*asked, line.ask("PING")):
        with pytest.raises(ConnectionError, match="closed"):
            await one
    assert len(dials) == 3


async def test_a_connection_that_is_lost_before_the_askers_turn_answers_nobody_else(bus: Bus) -> None:
    """Those who waited for the dial come to their turn after its loss."""
    for _ in range(20):
        asked = [asyncio.ensure_future(bus.line.ask("ECHO", f"old {number}")) for number in range(3)]
        wire: Any = await wait_until(lambda: bus.line._wire, description="connected", every=0)
        wire.cut(ConnectionError("cut"))
        wire.connection_lost(None)
        for one in asked:
            with pytest.raises(ConnectionError):
                await one
        assert await bus.line.ask("ECHO", "new") == b"new"
        bus.line._wire.cut(ConnectionError("cut"))
        await wait_until(lambda: bus.line._wire is None, description="it is lost")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(BINARIES["valkey"], tmp_path, "--save", "")
    server.start()
    yield server
    server.kill()


@asynccontextmanager
async def behind_tls(port: int, folder: Path) -> AsyncIterator[str]:
    """The address of a server that takes TLS off and passes on to a Redis; and it can be asked for a certificate."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(carry(reader, inner_writer), name="in")
                tasks.create_task(carry(inner_reader, writer), name="out")
        except* OSError:
            pass
        finally:
            inner_writer.close()
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    yield f"localhost:{server.sockets[0].getsockname()[1]}/1?ssl_ca_certs={folder / 'ca.pem'}"
    server.close()


async def test_tls_password_and_database_are_those_of_the_address(guarded: RedisServer, tmp_path: Path) -> None:
    plain = connect(guarded.url)
    await plain.line.ask("CONFIG", "SET", "requirepass", "secret")
    async with behind_tls(guarded.port, tmp_path) as address:
        bus = connect(f"rediss://:secret@{address}")
        await bus.line.ask("SET", "a", "b", "PX", 60_000)
        assert await plain.line.ask("DBSIZE") == 0  # it is in database 1
        hearing, heard = Hearing(), list[bytes]()
        task = asyncio.create_task(listen(bus, "channel", heard.append, hearing), name="listen")
        for number in range(2):
            await wait_until(lambda n=number: hearing.began > n, description="it listens")
            text = b"%d" % number * 100_000
            await bus.line.ask("PUBLISH", "channel", text)
            await wait_until(lambda text=text: heard and heard[-1] == text, description="it hears")
            await plain.line.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await plain.line.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await wait_until(lambda: _is_answered(bus), description="it is back")
        task.cancel()
        await asyncio.wait({task})
        await bus.aclose()
        wrong = connect(f"rediss://:wrong@{address}")
        with pytest.raises(AuthenticationError):
            await wrong.line.ask("PING")
        await wrong.aclose()
    await plain.aclose()


async def _is_answered(bus: Bus) -> bool:
    try:
        return await bus.line.ask("GET", "a") == b"b"
    except BUS_ERRORS:
        return False
