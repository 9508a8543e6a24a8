"""`tokenbus explain` tells what happened to a request, whichever of its ids one has."""

import asyncio
import re
from typing import Any

import redis

from shared.keys import Keys
from shared.messages import Job
from tests.conftest import wait_until
from tests.e2e.wire import Connection, chat, cycle, post, stream
from tests.fault.commands import tokenbus
from tests.fault.test_dead import bury, dead_job
from tests.processes import Stack

KEYS = Keys()
CHAT = "/v1/chat/completions"
SLOW = ("--model-names", "echo", "--echo-interval-ms", "20")


async def start(stack: Stack, *flags: str) -> None:
    await stack.gateway()
    await stack.worker(*flags)
    await stack.models("echo")


async def workers(stack: Stack) -> list[str]:
    return [row["worker"] for row in await stack.registry()]


async def traced(bus: redis.Redis, event: str, count: int = 1) -> list[str]:
    """Jobs whose last milestone so far is of this kind, once there are so many."""

    def found() -> list[str] | None:
        keys = sorted(bus.scan_iter("tokenbus:trace:*"))
        jobs = [key.rpartition(":")[2] for key in keys if _last(bus.get(key)) == event]
        return jobs if len(jobs) == count else None

    jobs: list[str] = await wait_until(found, description=f"{count} jobs {event}")
    return jobs


def _last(trace: str | None) -> str:
    return re.findall(r'"event":"(\w+)"', trace or "")[-1]


def events(trace: dict[str, Any]) -> list[str]:
    return [row["event"] for row in trace["milestones"]]


async def explained(stack: Stack, id: str) -> str:
    said = await tokenbus(stack, "explain", id)
    assert (said.code, said.err) == (0, "")
    return said.out


async def closing(stack: Stack, id: str) -> str:
    return (await explained(stack, id)).splitlines()[-1]


async def test_a_reply_is_found_by_each_of_its_ids(stack: Stack) -> None:
    await start(stack)
    (worker,) = await workers(stack)
    response = await asyncio.to_thread(post, stack, CHAT, chat("a b", max_tokens=2))
    reply, made = response.json()["id"], response.headers["x-request-id"]
    response = await asyncio.to_thread(post, stack, CHAT, chat("a b", max_tokens=2), **{"x-request-id": "my-own/1"})
    assert response.headers["x-request-id"] == "my-own/1"
    for id, request in ((reply, reply), (f"{reply}-0", reply), (made, reply), ("my-own/1", response.json()["id"])):
        (trace,) = (await tokenbus(stack, "explain", id, "--json")).json
        assert (trace["request"], trace["model"], trace["jobs"]) == (request, "echo", 1)
        assert events(trace) == ["accepted", "queued", "claimed", "first_token", "finished"]
    said = await explained(stack, made)
    assert re.search(r"^gateway +\S+ \(alive\)$", said, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} +\+0  accepted", said, re.MULTILINE)
    assert f"claimed by {worker} (attempt 1)" in said
    assert "finished (length, 2 tokens)" in said
    assert re.fullmatch(r"finished after .* waiting, 1 attempt", said.splitlines()[-1])
    response = await asyncio.to_thread(
        post, stack, "/v1/completions", {"model": "echo", "prompt": "a", "max_tokens": 2}
    )
    (trace,) = (await tokenbus(stack, "explain", response.headers["x-request-id"], "--json")).json
    assert trace["request"] == response.json()["id"]


async def test_a_reply_that_was_continued_shows_both_attempts_in_order(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    first = await stack.worker(*SLOW)
    (one,) = await workers(stack)
    await stack.models("echo")
    running = asyncio.create_task(stream(stack, chat("a b c", max_tokens=150)))
    (job,) = await traced(bus, "first_token")
    first.kill()
    await stack.worker(*SLOW)
    assert (await running).text() == cycle("a b c", 150)
    (two,) = await workers(stack)
    (trace,) = (await tokenbus(stack, "explain", job, "--json")).json
    assert events(trace) == [
        "accepted",
        "queued",
        "claimed",
        "first_token",
        "reissued",
        "claimed",
        "resumed",
        "finished",
    ]
    times = [row["at"] for row in trace["milestones"]]
    assert times == sorted(times)
    said = await explained(stack, job)
    lines = [line.partition("  ")[2].strip() for line in said.splitlines()]
    order = [next(i for i, line in enumerate(lines) if words in line) for words in (
        f"claimed by {one} (attempt 1)",
        "given to another worker: its worker was lost, ",
        f"claimed by {two} (attempt 2)",
        "finished (length, 150 tokens)",
    )]  # fmt: skip
    assert order == sorted(order)
    assert " so far, 1 crash" in said
    assert re.search(r"^finished after .*, 2 attempts, longest pause ", said, re.MULTILINE)


async def test_one_that_runs_names_its_worker_and_whether_it_lives(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    worker = await stack.worker(*SLOW)
    (id,) = await workers(stack)
    await stack.models("echo")
    connection = await Connection.open(stack)
    await connection.send(chat("a b", stream=True))
    (job,) = await traced(bus, "first_token")
    assert re.fullmatch(rf"running on {id} for \S+ m?s", await closing(stack, job))
    worker.kill()
    await traced(bus, "reissued")
    assert re.fullmatch(r"waiting for \S+ m?s; nobody alive serves 'echo'", await closing(stack, job))
    connection.reset()


async def test_one_that_waits_tells_how_many_do(stack: Stack, bus: redis.Redis) -> None:
    await start(stack, *SLOW, "--limit-worker-concurrency", "1")
    clients = [await Connection.open(stack) for _ in range(3)]
    for client in clients:
        await client.send(chat("a b", stream=True))
    jobs = await traced(bus, "queued", count=2)
    for job in jobs:
        assert re.fullmatch(r"waiting for \S+ m?s; jobs that wait for 'echo': 2", await closing(stack, job))
    for client in clients:
        client.reset()


async def test_each_choice_has_a_table_of_its_own(stack: Stack) -> None:
    await start(stack)
    reply = (await asyncio.to_thread(post, stack, CHAT, chat("a b", max_tokens=2, n=2))).json()["id"]
    said = await explained(stack, reply)
    assert f"job 1 of 2: {reply}-0" in said
    assert f"job 2 of 2: {reply}-1" in said
    assert said.count("finished (length, 2 tokens)") == 2
    assert [trace["index"] for trace in (await tokenbus(stack, "explain", reply, "--json")).json] == [0, 1]
    assert "job 1 of" not in await explained(stack, f"{reply}-1")


async def test_a_client_that_left_is_told(stack: Stack, bus: redis.Redis) -> None:
    await start(stack, *SLOW)
    connection = await Connection.open(stack)
    await connection.send(chat("a b", stream=True))
    await connection.until(b"content")
    connection.reset()
    (job,) = await traced(bus, "cancelled")
    said = await explained(stack, job)
    assert "cancelled: its client left" in said
    assert said.splitlines()[-1].startswith("cancelled after ")


async def test_a_gateway_that_was_killed_is_told(stack: Stack, bus: redis.Redis) -> None:
    gateway = await stack.gateway()
    await stack.worker(*SLOW)
    await stack.models("echo")
    connection = await Connection.open(stack)
    await connection.send(chat("a b", stream=True))
    (job,) = await traced(bus, "first_token")
    gateway.kill()
    await wait_until(lambda: not bus.keys("tokenbus:gateway:*"), description="its lease has run out")
    said = await explained(stack, job)
    assert "(gone)" in said
    assert said.splitlines()[-1].endswith("its gateway is gone; nobody waits for it")
    connection.reset()


async def test_one_that_was_buried_leads_to_its_dead_letter(stack: Stack, bus: redis.Redis) -> None:
    await start(stack, "--echo-crash-word", "arsenic")
    job: Job = dead_job("chatcmpl-9-0", "arsenic")
    bury(bus, job)
    assert (await tokenbus(stack, "dead", job.id, "--requeue")).code == 1
    said = await closing(stack, job.id)
    assert said.startswith("failed after ")
    assert said.endswith("; `tokenbus dead chatcmpl-9-0` shows it")


async def test_what_is_not_known_is_one_line_that_says_what_is(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    for id in ("chatcmpl-0", "req-" + "0" * 32, "whatever"):
        refusal = (await tokenbus(stack, "explain", id)).refusal
        assert f"nothing is known of '{id}'" in refusal
        assert "10 minutes" in refusal
    bus.set(KEYS.trace("odd"), "{", ex=60)
    assert "nothing is known of 'odd'" in (await tokenbus(stack, "explain", "odd")).refusal
