"""One try at a request over a socket of its own: everything that came, how it ended, and when each token did."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any

from tests.e2e.wire import Connection
from tests.fault.chaos.mix import Request

BROKEN: tuple[type[BaseException], ...] = (OSError, EOFError, asyncio.LimitOverrunError, ValueError)


class Ended(Enum):
    WHOLE = "the answer is complete, as far as HTTP goes"
    UNREACHABLE = "nobody listens"
    BROKEN = "the connection ended within the answer"
    LEFT = "the client left"
    STUCK = "nothing more came"


class Attempt:
    """`life` tells which process of the gateway was asked."""

    def __init__(self, request: Request, life: int) -> None:
        self.request = request
        self.life = life
        self.started = time.monotonic()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.id = ""
        self.texts: dict[int, str] = defaultdict(str)
        self.reasons: dict[int, list[str]] = defaultdict(list)
        self.arrivals: dict[int, list[float]] = defaultdict(list)  # of a streamed choice's tokens
        self.usages: list[dict[str, Any]] = []
        self.error: dict[str, Any] | None = None
        self.done = False
        self.after_done = ""
        self.ended = Ended.STUCK

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def tokens_came(self) -> int:
        return sum(len(text.split()) for text in self.texts.values())

    async def run(self, port: int, patience: float) -> "Attempt":
        leaves_after = self.request.leaves_after_s
        try:
            connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
        except OSError:
            self.ended = Ended.UNREACHABLE
            return self
        try:
            async with asyncio.timeout(patience if leaves_after is None else leaves_after):
                self.ended = await self._exchange(connection)
        except TimeoutError:
            self.ended = Ended.STUCK if leaves_after is None else Ended.LEFT
        except BROKEN:
            self.ended = Ended.BROKEN
        finally:
            connection.reset()
        return self

    async def _exchange(self, connection: Connection) -> Ended:
        await connection.send(self.request.body, self.request.path, "Connection: close\r\n")
        await self._read_head(connection.reader)
        parts = self._body(connection.reader)
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            return await self._read_events(parts)
        self._take_whole(b"".join([part async for part in parts]))
        return Ended.WHOLE

    async def _read_head(self, reader: asyncio.StreamReader) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        self.status = int(first.split()[1])

    async def _body(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        if length := self.headers.get("content-length"):
            yield await reader.readexactly(int(length))
            return
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")

    async def _read_events(self, parts: AsyncIterator[bytes]) -> Ended:
        rest = b""
        async for part in parts:
            *events, rest = (rest + part).split(b"\n\n")
            for event in events:
                self._take_event(event.decode())
            leaves_after = self.request.leaves_after_tokens
            if leaves_after is not None and not self.done and self.tokens_came >= leaves_after:
                return Ended.LEFT
        self.after_done += rest.decode()
        return Ended.WHOLE

    def _take_event(self, event: str) -> None:
        if event.startswith(":"):
            return
        if self.done:
            self.after_done += event
        elif event == "data: [DONE]":
            self.done = True
        else:
            self._take_body(json.loads(event.removeprefix("data: ")))

    def _take_whole(self, content: bytes) -> None:
        self._take_body(json.loads(content))
        self.done = self.error is None

    def _take_body(self, body: dict[str, Any]) -> None:
        if "error" in body:
            self.error = body["error"]
            return
        self.id = body["id"]
        if body.get("usage"):
            self.usages.append(body["usage"])
        for choice in body["choices"]:
            index = choice["index"]
            if text := _text_of(choice):
                self.texts[index] += text
                self.arrivals[index].append(time.monotonic())
            if reason := choice["finish_reason"]:
                self.reasons[index].append(reason)


def _text_of(choice: dict[str, Any]) -> str:
    said = choice.get("message") or choice.get("delta")
    return choice["text"] if said is None and "text" in choice else (said or {}).get("content") or ""
