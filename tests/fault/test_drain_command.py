"""`tokenbus drain` sends a worker home from anywhere, and its streams go on elsewhere."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from registry.lease import register
from shared.connection import connect
from shared.keys import Keys
from shared.messages import Drain, WorkerInfo, decode_control, encode
from tests.conftest import wait_until
from tests.e2e.wire import chat, cycle, stream
from tests.fault.commands import Command, tokenbus
from tests.integration.bus import make_info, subscribed
from tests.processes import Process, Stack

WORDS = "a b c d e f g"
SLOW = ("--model-names", "echo", "--echo-interval-ms", "20", "--limit-worker-concurrency", "8")


@pytest.fixture
async def bus_client(valkey_url: str) -> AsyncIterator[Any]:
    client = connect(valkey_url)
    yield client
    await client.aclose()


async def rows(stack: Stack, count: int) -> list[dict[str, Any]]:
    async def enough() -> list[dict[str, Any]] | None:
        found = await stack.registry()
        return found if len(found) == count else None

    found: list[dict[str, Any]] = await wait_until(enough, description=f"{count} workers")
    return found


async def worker(stack: Stack, *flags: str) -> tuple[Process, str]:
    """The process, and its id on the bus."""
    known = {row["worker"] for row in await stack.registry()}
    process = await stack.worker(*flags)
    (row,) = [row for row in await stack.registry() if row["worker"] not in known]
    return process, row["worker"]


async def test_running_streams_go_on_at_the_other_worker_exactly(stack: Stack) -> None:
    await stack.gateway()
    leaving, id = await worker(stack, *SLOW)
    await stack.worker(*SLOW)
    await rows(stack, 2)
    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(stream(stack, chat(f"s{i} {WORDS}", max_tokens=200))) for i in range(6)]

        async def used() -> int:
            return sum(row["slots_used"] for row in await stack.registry() if row["worker"] == id)

        await wait_until(used, description="it has streams")
        said = await tokenbus(stack, "drain", id)
        assert not any(task.done() for task in streams), "they still run"
    assert said.code == 0, said
    assert f"worker {id} has " in said.out
    assert f"worker {id} left after " in said.out
    assert await asyncio.to_thread(leaving.wait, 5) == 0
    for i, task in enumerate(streams):
        assert task.result().text() == cycle(f"s{i} {WORDS}", 200)
        assert task.result().finish_reasons == ["length"]


async def test_the_beginning_of_an_id_or_the_host_name_will_do(stack: Stack) -> None:
    host = socket.gethostname().split(".")[0][:40]
    first, id = await worker(stack, "--model-names", "one")
    second, _ = await worker(stack, "--model-names", "two")
    both = (await tokenbus(stack, "drain", host)).refusal
    assert all(row["worker"] in both for row in await stack.registry())
    said = await tokenbus(stack, "drain", id[:-1])
    assert (said.code, await asyncio.to_thread(first.wait, 5)) == (0, 0)
    assert "nobody else serves it" in said.out
    said = await tokenbus(stack, "drain", host)
    assert (said.code, await asyncio.to_thread(second.wait, 5)) == (0, 0)
    assert "there is no worker" in (await tokenbus(stack, "drain", host)).refusal


async def test_an_unknown_worker_is_one_line_with_those_that_there_are(stack: Stack) -> None:
    assert "none at the moment" in (await tokenbus(stack, "drain", "nobody-1")).refusal
    _, id = await worker(stack)
    assert f"there is no worker 'nobody-1'; alive are: {id}" in (await tokenbus(stack, "drain", "nobody-1")).refusal


async def test_no_wait_only_tells_it(stack: Stack) -> None:
    process, id = await worker(stack)
    said = await tokenbus(stack, "drain", id, "--no-wait")
    assert (said.code, said.out.splitlines()[-1]) == (0, f"worker {id} is told")
    assert await asyncio.to_thread(process.wait, 10) == 0


async def test_one_that_does_not_leave_in_time_is_told_of_with_its_streams(stack: Stack) -> None:
    await stack.gateway()
    process, id = await worker(stack, *SLOW, "--drain-timeout", "30")
    await stack.models("echo")
    running = asyncio.create_task(stream(stack, chat(WORDS, max_tokens=300)))

    async def used() -> bool:
        return any(row["slots_used"] for row in await stack.registry())

    await wait_until(used, description="it streams")
    said = await tokenbus(stack, "drain", id, "--wait", "1")
    assert said.code == 1
    assert said.err == f"tokenbus drain: worker {id} is still there after 1 s: it is draining, with 1 stream left\n"
    assert (await running).text() == cycle(WORDS, 300)
    assert await asyncio.to_thread(process.wait, 10) == 0


async def played_worker(client: Any, keys: Keys) -> WorkerInfo:
    """A lease, and nobody behind it."""
    info = make_info("played-1", slots=1)
    await register(client, keys, info)
    await client.set(keys.worker("echo", info.id), encode(info), px=60_000)
    return info


async def published(client: Any) -> int:
    return int((await client.info("commandstats")).get("cmdstat_publish", {}).get("calls", 0))


async def test_one_that_does_not_listen_yet_is_told_again(stack: Stack, bus_client: Any) -> None:
    """As while it subscribes anew after its connection was lost."""
    keys = Keys()
    info = await played_worker(bus_client, keys)
    before = await published(bus_client)
    command = await Command.start(stack, "drain", info.id)

    async def told_in_vain() -> bool:
        return await published(bus_client) > before

    await wait_until(told_in_vain, description="it is told for the first time")
    async with subscribed(bus_client, keys.control(info.id)) as orders:
        assert decode_control(await asyncio.wait_for(anext(orders), 20)) == Drain()
    await bus_client.delete(keys.worker("echo", info.id))
    assert (await command.end()).code == 0


async def test_one_that_never_listens_is_told_of(stack: Stack, bus_client: Any) -> None:
    info = await played_worker(bus_client, Keys())
    said = await tokenbus(stack, "drain", info.id, "--wait", "0.5")
    assert said.code == 1
    assert said.err.endswith("is still there after 0.5 s: it does not listen\n")
    assert (await tokenbus(stack, "drain", info.id, "--no-wait")).code == 1
