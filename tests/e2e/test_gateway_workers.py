"""Several gateway processes behind one port are one gateway to whoever asks, and lose only what the dead one had."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import RedisServer, wait_until
from tests.e2e.wire import Connection, Streamed, chat
from tests.fault.streams import check, metric, rows, status
from tests.processes import Process, Stack

PROCESSES = 2
WORKER = ("--model-names", "echo", "--echo-interval-ms", "10", "--limit-worker-concurrency", "64")
ON_ALL = ("--workers", str(PROCESSES), "--log-level", "info")


def children(gateway: Process) -> list[psutil.Process]:
    return psutil.Process(gateway.pid).children()


def is_of(child: psutil.Process, connection: Connection) -> bool:
    here = connection.writer.get_extra_info("sockname")[1]
    return any(one.raddr and one.raddr.port == here for one in child.net_connections())


def folders(place: Path) -> list[Path]:
    return list(place.glob("tokenbus-gateway-*"))


async def follow(connection: Connection) -> Streamed:
    """What is left of a stream, to its end or until it breaks."""
    lines = []
    async with asyncio.timeout(30):
        while line := await connection.reader.readline():
            lines.append(line.decode().strip())
            if line.startswith(b"0\r"):  # the last chunk of the transfer encoding
                break
    return Streamed.parse(line for line in lines if line.startswith("data: "))


async def goes_on(connection: Connection) -> None:
    async with asyncio.timeout(20):
        for _ in range(30):
            assert (await connection.reader.readline()) != b""


class Streams:
    """Streams that are told apart by the process that serves them."""

    ENDLESS = 8000
    SHORT = 100  # tokens, 10 ms each

    def __init__(self) -> None:
        self._open: list[Connection] = []

    async def on_each(self, stack: Stack, gateway: Process, tokens: int = ENDLESS) -> dict[int, list[Connection]]:
        """At least one on each process, by process id; all of them have begun."""
        while True:
            connection = await Connection.open(stack)
            self._open.append(connection)
            await connection.send(chat("a b c", max_tokens=tokens, stream=True))
            await connection.until(b"data: ")
            by_process = {child.pid: [one for one in self._open if is_of(child, one)] for child in children(gateway)}
            if all(by_process.values()):
                return by_process

    def close(self) -> None:
        for connection in self._open:
            connection.reset()


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    streams = Streams()
    yield streams
    streams.close()


async def until_all_are_ready(gateway: Process, said: int = PROCESSES) -> None:
    await wait_until(lambda: gateway.said().count(" is process ") == said, description="all processes have started")


def is_whole(streamed: Streamed) -> bool:
    return streamed.done and streamed.error is None and len(streamed.text().split()) == Streams.SHORT


async def test_metrics_are_the_sums_over_all_processes(stack: Stack, streams: Streams) -> None:
    gateway = await stack.gateway(*ON_ALL)
    await stack.worker(*WORKER)
    await rows(stack, 1)
    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(check(stack, number, 5))
    assert {await metric(stack, "generation_tokens_total", model_name="echo") for _ in range(8)} == {40}

    opened = sum(map(len, (await streams.on_each(stack, gateway)).values()))

    async def running() -> bool:
        return {await metric(stack, "num_requests_running") for _ in range(4)} == {opened}

    await wait_until(running, description="all processes' streams are counted")
    streams.close()

    async def idle() -> bool:
        return {await metric(stack, "num_requests_running") for _ in range(4)} == {0}

    await wait_until(idle, description="none runs any more")


async def test_a_killed_process_breaks_its_own_streams_only_and_is_replaced(stack: Stack, streams: Streams) -> None:
    gateway = await stack.gateway(*ON_ALL)
    await stack.worker(*WORKER)
    await rows(stack, 1)
    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(check(stack, number, 3))
    by_process = await streams.on_each(stack, gateway)
    victim, survivor = children(gateway)
    victim.suspend()
    async with asyncio.TaskGroup() as tasks:
        # New clients come while it does not accept; those that wait for it are served by its successor.
        waiting = [tasks.create_task(check(stack, number, 3)) for number in range(12)]
        await wait_until(lambda: any(task.done() for task in waiting), description="the other process accepts")
        victim.kill()
    for broken in by_process[victim.pid]:
        assert not (await follow(broken)).done
    for whole in by_process[survivor.pid]:
        await goes_on(whole)
    await until_all_are_ready(gateway, PROCESSES + 1)
    assert gateway.said().count("was ended by SIGKILL; another takes its place") == 1
    assert len(children(gateway)) == PROCESSES
    assert {await metric(stack, "generation_tokens_total") for _ in range(6)} == {(8 + 12) * 3}
    running = {await metric(stack, "num_requests_running") for _ in range(6)}
    assert running == {len(by_process[survivor.pid])}


async def test_told_to_leave_all_finish_their_streams(stack: Stack, streams: Streams) -> None:
    """With --port 0 too all listen on one port, and say so once."""
    gateway = stack.spawn("gateway", "--port", "0", *ON_ALL)
    await until_all_are_ready(gateway)
    (stack.url,) = re.findall(rf"{PROCESSES} processes listen on (http://\S+)", gateway.said())
    await stack.worker(*WORKER)
    await stack.models("echo")
    by_process = await streams.on_each(stack, gateway, Streams.SHORT)
    gateway.signal(signal.SIGTERM)
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(one)) for connections in by_process.values() for one in connections]
    assert all(is_whole(task.result()) for task in following)
    assert await asyncio.to_thread(gateway.wait) == 0
    assert "WARNING" not in gateway.said()


async def test_a_process_that_is_told_to_leave_is_replaced_before_it_has_drained(
    stack: Stack, streams: Streams
) -> None:
    gateway = await stack.gateway(*ON_ALL)
    await stack.worker(*WORKER)
    await rows(stack, 1)
    by_process = await streams.on_each(stack, gateway)
    leaving = children(gateway)[0]
    leaving.terminate()
    await until_all_are_ready(gateway, PROCESSES + 1)
    assert {await status(stack, "/health") for _ in range(6)} == {200}
    for connections in by_process.values():
        for connection in connections:
            await goes_on(connection)
    assert leaving.is_running()
    streams.close()
    await wait_until(lambda: not leaving.is_running(), description="it has ended")
    assert gateway.said().count("leaves; another takes its place") == 1
    assert await asyncio.to_thread(gateway.terminate) == 0


async def test_a_second_ctrl_c_waits_for_no_stream(stack: Stack, streams: Streams) -> None:
    gateway = await stack.gateway(*ON_ALL)
    await stack.worker(*WORKER)
    await rows(stack, 1)
    await streams.on_each(stack, gateway)
    gateway.signal(signal.SIGINT)

    async def refused() -> bool:
        try:
            (await Connection.open(stack)).reset()
        except ConnectionRefusedError:
            return True
        return False

    await wait_until(refused, description="nobody is let in any more")
    assert not gateway.ended
    gateway.signal(signal.SIGINT)
    assert await asyncio.to_thread(gateway.wait) == 0


async def test_without_their_parent_all_finish_their_streams_and_leave(
    stack: Stack, streams: Streams, tmp_path: Path
) -> None:
    gateway = await stack.gateway(*ON_ALL, TMPDIR=str(tmp_path))
    await stack.worker(*WORKER)
    await rows(stack, 1)
    by_process = await streams.on_each(stack, gateway, Streams.SHORT)
    orphans = children(gateway)
    assert len(folders(tmp_path)) == 1
    gateway.kill()
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(one)) for connections in by_process.values() for one in connections]
    assert all(is_whole(task.result()) for task in following)
    await wait_until(lambda: not any(one.is_running() for one in orphans), description="nobody is left")
    assert folders(tmp_path) == []


def test_what_cannot_start_says_why_once(
    own_redis: RedisServer, own_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_stack.redis_url = own_redis.url.replace("redis://", "redis://:wrong@")
    gateway = own_stack.spawn("gateway", "--port", "0", *ON_ALL)
    assert gateway.wait() == 2
    assert len(re.findall(r"^gateway: .*refused", gateway.said(), re.MULTILINE)) == 1
    assert gateway.said().count("refused") == 1
    assert "Traceback" not in gateway.said()
