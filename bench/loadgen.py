"""Load on any OpenAI-compatible server, from raw sockets, in a process of its own; one JSON line on stdout.

Times run from before the connect, in an open loop from when the request was due. `first_content` is the first event
with text, not the first byte: a server may send a role before it has even asked a model. Rates count what came within
the window of steady load, between the warm-up and the end; requests that are open then are drained, and their times
count as well.
"""

import argparse
import asyncio
import gc
import json
import math
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any, cast
from urllib.parse import urlsplit

from bench.reply import Reply
from bench.report import CUT, Sample, Window, summarise
from bench.usage import Meter

now = time.perf_counter
LOOK_FOR_OVERDUE_S = 0.25
LOOK_FOR_STEADY_S = 0.02
PAUSE_AFTER_REFUSAL_S = 0.01  # a server that refuses at once is not to be asked without end
OPEN_LOOP_LIMIT = 8192  # open requests


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._over: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, reply: Reply) -> asyncio.Future[None]:
        """Done when the reply is complete or the connection gone."""
        self._reply = reply
        self._over = asyncio.get_running_loop().create_future()
        if self.transport is not None:
            self.transport.write(request)
        else:  # the server hung up at once
            self.connection_lost(None)
        return self._over

    def data_received(self, data: bytes) -> None:
        if self._reply is not None and self._reply.feed(data, now()):
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._reply is not None:
            self._reply.closed(now())
            self._end()

    def _end(self) -> None:
        self._reply = None
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def close(self) -> None:
        if self.transport is not None:
            self._reply = None
            self.transport.abort()  # the reply is complete, or nobody waits for it


class Load:
    """Closed loop: `concurrency` requests are open at any time. Open loop: one starts whenever it is due."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        urls = [urlsplit(url) for url in options.base_url.split(",")]
        self._targets = cycle([(url.hostname or "127.0.0.1", url.port or 80, request_to(url, options)) for url in urls])
        self._open: dict[Connection, tuple[float, Reply]] = {}
        self._overdue: set[Connection] = set()
        self._cut_at = math.inf  # what is still open then is given up
        self._left = options.requests or sys.maxsize
        self._stop = asyncio.Event()
        self.window = Window()
        self.samples: list[Sample] = []
        self.refused: Counter[str] = Counter()  # connections that never came to be

    async def run(self, meter: Meter) -> None:
        options = self._options
        async with asyncio.TaskGroup() as group:
            sweep = group.create_task(self._sweep(), name="overdue")
            clock = group.create_task(self._keep_window(meter), name="window")
            async with asyncio.TaskGroup() as load:
                if options.rate:
                    load.create_task(self._arrive(load), name="arrivals")
                else:
                    for number in range(options.concurrency):
                        ramp = options.warmup * number / options.concurrency
                        load.create_task(self._loop(ramp), name=f"client {number}")
            self._stop.set()
            await clock
            sweep.cancel()

    async def _keep_window(self, meter: Meter) -> None:
        """Counted by time or, without `--seconds`, until the last request has ended."""
        options = self._options
        await self._wait(options.warmup)
        await self._wait_until(lambda: self._answered() >= options.concurrency / 2)
        self.window.begin(now(), meter, _own_cpu_s())
        before = len(self.samples)
        await self._wait(options.seconds or None)
        await self._wait_until(lambda: len(self.samples) - before >= options.concurrency)
        self.window.end(now(), meter, _own_cpu_s())
        self._stop.set()
        self._cut_at = now() + self._options.drain

    async def _wait(self, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _wait_until(self, steady: Callable[[], bool]) -> None:
        """Who is slow to answer answers all clients in waves; a window within one of them would tell nothing."""
        until = now() + self._options.patience
        while not self._options.rate and not steady() and now() < until and not self._stop.is_set():
            await self._wait(LOOK_FOR_STEADY_S)

    def _answered(self) -> int:
        """Requests that have had any content."""
        return len(self.samples) + sum(bool(reply.arrivals) for _, reply in self._open.values())

    def _take(self) -> bool:
        self._left -= 1
        return not self._stop.is_set() and self._left >= 0

    async def _loop(self, ramp: float) -> None:
        """Clients that all begin at once would also end at once, wave after wave."""
        await self._wait(ramp)
        connection: Connection | None = None
        while self._take():
            connection = await self._request(now(), connection)
        if connection is not None:
            connection.close()

    async def _arrive(self, load: asyncio.TaskGroup) -> None:
        """A Poisson process; the same seed gives the same arrivals to every server."""
        draw = random.Random(self._options.seed)
        due = now()
        while self._take():
            due += draw.expovariate(self._options.rate)
            if due > now():
                await asyncio.sleep(due - now())
            if len(self._open) >= OPEN_LOOP_LIMIT:
                self.refused["not_started"] += 1
                continue
            load.create_task(self._request(min(due, now()), None), name="arrival")

    async def _request(self, started: float, connection: Connection | None) -> Connection | None:
        """Returns the connection if it can be used again."""
        options = self._options
        host, port, request = next(self._targets)
        if connection is None or connection.transport is None:
            try:
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(options.timeout):
                    _, connection = await loop.create_connection(Connection, host, port)
            except (OSError, TimeoutError):
                self.refused["connect"] += 1
                await asyncio.sleep(PAUSE_AFTER_REFUSAL_S)
                return None
        reply = Reply(streamed=options.stream, endpoint=options.endpoint)
        self._open[connection] = (started, reply)
        await connection.ask(request, reply)
        del self._open[connection]
        failure = self._failure(connection, reply)
        self.samples.append(Sample(started, now(), reply.arrivals, reply.tokens, failure))
        if options.keep_alive and reply.keep_alive and failure is None:
            return connection
        connection.close()
        if failure is not None:
            await asyncio.sleep(PAUSE_AFTER_REFUSAL_S)
        return None

    def _failure(self, connection: Connection, reply: Reply) -> tuple[str, str] | None:
        if connection not in self._overdue:
            return reply.failure()
        self._overdue.remove(connection)
        return (CUT, "") if now() >= self._cut_at else ("timeout", f"after {self._options.timeout:g} s")

    async def _sweep(self) -> None:
        """One look at all: a timer per request would cost more than many requests."""
        while True:
            await asyncio.sleep(LOOK_FOR_OVERDUE_S)
            before = now() - self._options.timeout if now() < self._cut_at else math.inf
            for connection in [open for open, (started, _) in self._open.items() if started < before]:
                self._overdue.add(connection)
                if connection.transport is not None:
                    connection.transport.abort()


def request_to(url: Any, options: argparse.Namespace) -> bytes:
    """Head and body, made once."""
    body: dict[str, Any] = {"model": options.model, "max_tokens": options.max_tokens, "temperature": 0}
    if options.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": options.prompt}]
        path = "/v1/chat/completions"
    else:
        body["prompt"] = options.prompt
        path = "/v1/completions"
    if options.stream:
        body["stream"] = True
        if options.usage:
            body["stream_options"] = {"include_usage": True}
    content = json.dumps(body).encode()
    lines = [
        f"POST {url.path.rstrip('/').removesuffix('/v1')}{path} HTTP/1.1",
        f"Host: {url.netloc.rpartition('@')[2]}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    if options.api_key:
        lines.append(f"Authorization: Bearer {options.api_key}")
    if not options.keep_alive:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.loadgen", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--base-url", required=True, help="http://host:port; several, separated by commas, take turns")
    add("--model", required=True)
    add("--concurrency", type=int, default=1)
    add("--rate", type=float, default=0, help="requests/s, Poisson, in place of --concurrency")
    add("--seed", type=int, default=1, help="of the arrivals")
    add("--requests", type=int, default=0, help="end after so many")
    add("--seconds", type=float, default=0, help="length of the window; default: until --requests are done")
    add("--warmup", type=float, default=0, help="s before the window, over which the clients begin")
    add("--patience", type=float, default=0, help="s by which warm-up and window may each grow until all had a turn")
    add("--stream", action="store_true")
    add("--usage", action="store_true", help="ask for usage in a stream, to count tokens and not events")
    add("--max-tokens", type=int, default=64)
    add("--endpoint", choices=["chat", "completions"], default="chat")
    add("--prompt", default="one two three four five six seven eight")
    add("--api-key")
    add("--keep-alive", action="store_true", help="default: one connection per request")
    add("--timeout", type=float, default=60, help="s per request")
    add("--drain", type=float, default=60, help="s that open requests get after the window; then they count as cut")
    add("--meter", default="{}", metavar="JSON", help='{"gateway": [pid, ...], ...}: their CPU time and memory')
    options = parser.parse_args(argv)
    if not options.requests and not options.seconds:
        parser.error("give --seconds, --requests or both")
    return options


def main(argv: Sequence[str]) -> None:
    options = parse(argv)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    gc.disable()  # a pause would be taken for the server's
    load = Load(options)
    with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
        runner.run(load.run(Meter(json.loads(options.meter))))
    print(json.dumps(summarise(load.samples, load.refused, load.window)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
