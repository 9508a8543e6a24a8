"""A connection to Redis that all tasks of a process share, for what is done per request and per step.

What is sent in one turn of the loop leaves in one write, and the replies come back in order. redis-py gives each
command a connection of its own and spends ten times the CPU on it. It still makes the connection: address, TLS,
password and database are its matter, and so are the classes of errors.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
from redis.exceptions import ConnectionError, InvalidResponse, NoScriptError, TimeoutError

Command = tuple[str | bytes | int, ...]
Dial = Callable[[], Awaitable[Any]]  # a connection of redis-py, connected
_NOTHING = object()


def pack(command: Command) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, by its source and its name in Redis's cache."""

    source: str
    sha: str


class Wire(asyncio.Protocol):
    """One connection for as long as it lasts; `receive` gets each reply, `lost` is called once at its end."""

    def __init__(self, dialled: Any, receive: Callable[[Any], None], lost: Callable[[Exception], None]) -> None:
        self._dialled = dialled  # kept, or its own streams would close the transport
        self._transport: asyncio.Transport = dialled._writer.transport
        self._receive = receive
        self._lost = lost
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=dialled._parser.parse_error, notEnoughData=_NOTHING
        )
        self._why: Exception | None = None
        self._is_lost = False
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport.set_protocol(self)
        if self._transport.is_closing():  # it ended before it was ours: nobody else will say so
            self._loop.call_soon(self.connection_lost, None)

    def write(self, data: bytes) -> None:
        """At the end of this turn of the loop, with whatever else is written in it."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if not self._transport.is_closing():  # who waits for an answer is told by its end
            self._transport.write(b"".join(unsent))

    def cut(self, why: Exception) -> None:
        """The end, at once and whatever is under way."""
        self._why = self._why or why
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _NOTHING:
                self._receive(reply)
        except InvalidResponse as error:
            self.cut(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._dialled._reader = self._dialled._writer = None  # else it warns that nobody closed it
        self._lost(self._why or ConnectionError(f"the connection to Redis was lost: {exc or 'closed by the server'}"))


@dataclass(slots=True)
class _Asked:
    """Commands that were sent together."""

    count: int
    at: float
    future: "asyncio.Future[list[Any]]"
    replies: list[Any] = field(default_factory=list)


class Line:
    """Connects when first asked, and again after a loss, which fails whatever is under way. A command is sent once."""

    def __init__(self, dial: Dial, answered_within: float) -> None:
        self._dial = dial
        self._within = answered_within  # s, else the link is taken for dead
        self._wire: Wire | None = None
        self._dialling: asyncio.Task[Wire] | None = None
        self._is_closed = False
        self._heard_at = 0.0
        self._asked: deque[_Asked] = deque()
        self._watch: asyncio.TimerHandle | None = None

    async def ask(self, *command: str | bytes | int) -> Any:
        return (await self.batch([command]))[0]

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        try:
            return await self.ask("EVALSHA", script.sha, len(keys), *keys, *args)
        except NoScriptError:  # then it has not run
            return await self.ask("EVAL", script.source, len(keys), *keys, *args)

    async def batch(self, commands: Iterable[Command]) -> list[Any]:
        """The replies, in order. Raises the first that is an error, once all have come."""
        replies = await self.replies(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def replies(self, commands: Iterable[Command]) -> list[Any]:
        """The same, with errors among the replies. Raises ConnectionError or TimeoutError if they do not come."""
        packed = [pack(command) for command in commands]
        if not packed:
            return []
        wire = self._wire or await self._connected()
        if wire is not self._wire:  # lost again before this asker's turn
            raise ConnectionError("the connection to Redis was lost")
        loop = asyncio.get_running_loop()
        asked = _Asked(len(packed), loop.time(), loop.create_future())
        self._asked.append(asked)
        if self._watch is None:
            self._watch = loop.call_later(self._within, self._look)
        wire.write(packed[0] if len(packed) == 1 else b"".join(packed))
        return await asked.future

    def close(self) -> None:
        self._is_closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._wire is not None:
            self._wire.cut(ConnectionError("the connection to Redis was closed"))

    async def _connected(self) -> Wire:
        """Whoever asks meanwhile waits for the same dial, and is told the same if it fails."""
        dialling = self._dialling
        if dialling is None:
            dialling = self._dialling = asyncio.create_task(self._connect(), name="dial")
            dialling.add_done_callback(self._dialled)
        await asyncio.wait({dialling})  # which is not cancelled with one of those who wait
        if dialling.cancelled():
            raise ConnectionError("the connection to Redis was closed")
        return dialling.result()

    async def _connect(self) -> Wire:
        if self._is_closed:
            raise ConnectionError("the connection to Redis was closed")
        self._wire = Wire(await self._dial(), self._receive, self._lose)
        return self._wire

    def _dialled(self, dialling: "asyncio.Task[Wire]") -> None:
        self._dialling = None
        if not dialling.cancelled():
            dialling.exception()  # those who waited have it; perhaps nobody does any more

    def _receive(self, reply: Any) -> None:
        asked = self._asked[0]
        self._heard_at = asyncio.get_running_loop().time()
        asked.replies.append(reply)
        if len(asked.replies) == asked.count:
            self._asked.popleft()
            if not asked.future.done():  # its asker may have been cancelled
                asked.future.set_result(asked.replies)

    def _lose(self, why: Exception) -> None:
        self._wire = None
        asked, self._asked = self._asked, deque()
        for one in asked:
            if not one.future.done():
                one.future.set_exception(why)

    def _look(self) -> None:
        """A link that was cut in silence would hold its askers for ever. One that is only slow still answers."""
        self._watch = None
        if not self._asked or self._wire is None:
            return
        loop = asyncio.get_running_loop()
        left = max(self._asked[0].at, self._heard_at) + self._within - loop.time()
        if left <= 0:
            self._wire.cut(TimeoutError("Redis did not answer"))
        else:
            self._watch = loop.call_later(left, self._look)


class Subscription:
    """One channel on a connection of its own. `begun` is done once it is heard, `ended` raises when the connection is
    lost. A link that died in silence counts as lost: it is pinged when nothing comes, since it only listens."""

    def __init__(
        self, dialled: Any, channel: str, receive: Callable[[bytes], None], ping_after: float, deaf_after: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._payload = receive
        self._ping_after, self._deaf_after = ping_after, deaf_after  # s of silence
        self._heard_at = self._loop.time()
        self._wire = Wire(dialled, self._receive, self._lose)
        self._wire.write(pack(("SUBSCRIBE", channel)))
        self._look()

    def close(self) -> None:
        self._wire.cut(ConnectionError("the subscription was closed"))

    def _look(self) -> None:
        silent = self._loop.time() - self._heard_at
        if silent > self._deaf_after:
            self._wire.cut(TimeoutError("the subscription was deaf"))
        elif silent > self._ping_after:
            self._wire.write(pack(("PING",)))
        self._watch = self._loop.call_later(self._ping_after / 2, self._look)

    def _receive(self, reply: Any) -> None:
        self._heard_at = self._loop.time()
        if isinstance(reply, Exception):
            self._wire.cut(reply)
        elif reply[0] == b"message":
            self._payload(reply[2])
        elif reply[0] == b"subscribe" and not self.begun.done():
            self.begun.set_result(None)

    def _lose(self, why: Exception) -> None:
        self._watch.cancel()
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_exception(why)
                future.exception()  # whoever waits gets it; nobody has to
