"""`tokenbus dead` lists, shows, runs again and removes what was given up."""

import asyncio
import json
import time
from typing import Any

import pytest
import redis

from shared.keys import GROUP, Keys
from shared.messages import Job, encode
from shared.queue import set_aside
from tests.conftest import wait_until
from tests.e2e.wire import chat, cycle, stream
from tests.fault.commands import Command, tokenbus
from tests.integration.bus import make_job
from tests.processes import Stack

KEYS = Keys()
DEAD = KEYS.dead("echo")
POISON = ("--echo-crash-word", "arsenic")


def bury(bus: redis.Redis, *jobs: Job, workers: str = "w-1,w-2,w-3") -> list[str]:
    """As a gateway does; entry ids."""
    jobs, payloads = set_aside(jobs)  # type: ignore[assignment]
    if payloads is not None:
        bus.set(KEYS.payload(jobs[0].request), payloads, ex=3600)
    for job in jobs:
        bus.set(KEYS.cancelled(job.id), "1", px=60_000)
    rows: list[dict[Any, Any]] = [{"job": encode(job), "reason": "worker_lost", "workers": workers} for job in jobs]
    return [str(bus.xadd(DEAD, row)) for row in rows]


def dead_job(id: str = "chatcmpl-1-0", text: str = "a b c", **fields: Any) -> Job:
    return make_job(id, text, crashes=2, attempt=2, job_class="high", **{"max_tokens": 5, **fields})


def is_clean(bus: redis.Redis) -> bool:
    streams = KEYS.job_streams("echo")
    return not any(bus.xlen(stream) or bus.xpending(stream, GROUP)["pending"] for stream in streams)


async def slots_used(stack: Stack) -> int:
    return sum(row["slots_used"] for row in await stack.registry())


async def test_what_three_workers_died_on_is_listed_shown_and_run_again(stack: Stack, bus: redis.Redis) -> None:
    text = f"[bold] arsenic \x1b[31m {'w' * 70_000}"
    await stack.gateway()
    dying = [await stack.worker(*POISON)]
    await stack.models("echo")
    async with asyncio.TaskGroup() as tasks:
        poisoned = tasks.create_task(stream(stack, chat(text, max_tokens=3)))
        for _ in range(2):
            await wait_until(lambda: dying[-1].ended, description="it dies")
            dying.append(await stack.worker(*POISON))
    assert poisoned.result().status == 500

    (row,) = (await tokenbus(stack, "dead", "--json")).json
    assert (row["model"], row["kind"], row["crashes"], row["reason"]) == ("echo", "chat", 3, "worker_lost")
    assert abs(row["buried_at"] - time.time()) < 60
    died = " ".join(process.said() for process in dying)
    assert len(row["workers"]) == 3
    assert all(f"worker {id} serves" in died for id in row["workers"])
    listed = (await tokenbus(stack, "dead")).out
    assert all(word in listed for word in (row["id"], row["entry"], "3 crashes", "[bold] arsenic", *row["workers"]))
    assert "\x1b" not in listed
    for id in (row["id"], row["request"], row["entry"]):
        shown = (await tokenbus(stack, "dead", id)).out
        assert '"sampling"' in shown
        assert "user: [bold] arsenic  [31m" in shown
        assert "w" * 70_000 in shown
    whole = (await tokenbus(stack, "dead", row["id"], "--json")).json
    assert whole["payload"]["messages"][0]["content"] == text
    assert (whole["job"]["attempt"], whole["job"]["sampling"]["max_tokens"]) == (2, 3)

    await stack.worker()
    said = await tokenbus(stack, "dead", row["id"], "--requeue")
    assert (said.code, said.out.rstrip("\n")) == (0, cycle(text, 3)), said.err
    assert said.err.startswith("tokenbus dead: finished (length; 3 tokens, prompt of 4) after ")
    assert bus.xlen(DEAD) == 0
    assert bus.keys("tokenbus:payload:*") == []
    await wait_until(lambda: is_clean(bus), description="nothing of the run is left")
    assert len(bus.keys("tokenbus:gateway:*")) == 1  # the command was one, and said goodbye
    assert (await tokenbus(stack, "dead")).out == "no dead letters\n"


async def test_one_more_crash_buries_it_again_and_it_is_listed_once(stack: Stack, bus: redis.Redis) -> None:
    worker = await stack.worker(*POISON)
    (before,) = bury(bus, dead_job(text="arsenic"))
    said = await tokenbus(stack, "dead", "chatcmpl-1", "--requeue")
    assert (said.code, said.out) == (1, "")
    assert worker.ended
    (row,) = (await tokenbus(stack, "dead", "--json")).json
    assert (row["id"], row["crashes"], len(row["workers"])) == ("chatcmpl-1-0", 3, 1)
    assert row["entry"] != before
    assert said.err.count("\n") == 1
    assert (
        f"worker_lost: This request was given up after 3 workers failed on it; buried again, as entry {row['entry']}"
        in said.err
    )
    # And from there it can be run again.
    await stack.worker()
    assert (await tokenbus(stack, "dead", row["entry"], "--requeue")).out == "arsenic arsenic arsenic arsenic arsenic\n"


async def test_it_runs_alone_beside_nobody(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    await stack.worker("--echo-interval-ms", "20")
    await stack.models("echo")
    bury(bus, dead_job(max_tokens=100))
    async with asyncio.TaskGroup() as tasks:
        neighbour = tasks.create_task(stream(stack, chat("x y", max_tokens=60)))
        await wait_until(lambda: slots_used(stack), description="the neighbour streams")
        said = await tokenbus(stack, "dead", "chatcmpl-1", "--requeue")
    assert said.out == cycle("a b c", 100) + "\n"
    assert neighbour.result().text() == cycle("x y", 60)
    trace = json.loads(bus.get(KEYS.trace("chatcmpl-1-0")) or "")
    assert [row["event"] for row in trace["milestones"]] == ["accepted", "queued", "claimed", "first_token", "finished"]


async def test_ctrl_c_cancels_the_job_and_leaves_the_letter(stack: Stack, bus: redis.Redis) -> None:
    await stack.worker("--echo-interval-ms", "20")
    (entry,) = bury(bus, dead_job(max_tokens=5000))
    command = await Command.start(stack, "dead", "chatcmpl-1", "--requeue")
    await command.stdout.readuntil(b"a b c")
    command.interrupt()
    said = await command.end()
    assert (said.code, said.err) == (130, "tokenbus dead: cancelled; the dead letter stays\n")
    await wait_until(lambda: is_clean(bus), description="the entry is gone")
    await wait_until(lambda: _idle(stack), description="the slot is free", timeout=3)
    assert [id for id, _ in bus.xrange(DEAD)] == [entry]


async def _idle(stack: Stack) -> bool:
    return await slots_used(stack) == 0


async def test_a_run_that_takes_too_long_ends_with_one_line(stack: Stack, bus: redis.Redis) -> None:
    await stack.worker("--echo-interval-ms", "20")
    (entry,) = bury(bus, dead_job(max_tokens=5000))
    said = await tokenbus(stack, "dead", "chatcmpl-1", "--requeue", "--timeout", "1")
    assert said.code == 1
    assert said.out.startswith("a b c a")
    assert said.err.startswith("tokenbus dead: deadline_exceeded: ")
    assert said.err.endswith("; the dead letter stays\n")
    assert [id for id, _ in bus.xrange(DEAD)] == [entry]
    await wait_until(lambda: is_clean(bus), description="the job is gone")


async def test_a_request_that_the_worker_refuses_stays(stack: Stack, bus: redis.Redis) -> None:
    await stack.worker()
    bury(bus, dead_job("embd-1-0", kind="embedding", payload={"inputs": ["a", "b"]}))
    said = await tokenbus(stack, "dead", "embd-1", "--requeue")
    assert (said.code, said.out) == (1, "")
    assert "unsupported_model: " in said.err
    assert bus.xlen(DEAD) == 1


async def test_nobody_alive_is_said_at_once(stack: Stack, bus: redis.Redis) -> None:
    worker = await stack.worker()
    await asyncio.to_thread(worker.terminate)
    bury(bus, dead_job())
    refusal = (await tokenbus(stack, "dead", "chatcmpl-1", "--requeue")).refusal
    assert "nobody alive serves 'echo'; the dead letter stays" in refusal
    assert bus.xlen(DEAD) == 1


async def test_choices_share_a_large_prompt_until_the_last_of_them_is_removed(stack: Stack, bus: redis.Redis) -> None:
    await stack.worker()
    one, other = {"messages": [{"role": "user", "content": "v " * 40_000}]}, {"prompt": "x y z"}
    jobs = [dead_job(f"cmpl-1-{i}", payload=payload) for i, payload in enumerate((one, other, other))]
    bury(bus, *jobs)
    assert "may be any of cmpl-1-0, cmpl-1-1, cmpl-1-2" in (await tokenbus(stack, "dead", "cmpl-1")).refusal
    assert (await tokenbus(stack, "dead", "cmpl-1-0", "--remove")).out == "removed cmpl-1-0\n"
    said = await tokenbus(stack, "dead", "cmpl-1-1", "--requeue")
    assert said.out == "x y z x y\n"
    assert bus.keys("tokenbus:payload:*") == ["tokenbus:payload:cmpl-1"]
    assert bus.ttl("tokenbus:payload:cmpl-1") > 80_000
    assert (await tokenbus(stack, "dead", "cmpl-1-2", "--remove")).code == 0
    assert bus.keys("tokenbus:payload:*") == []
    assert bus.xlen(DEAD) == 0


async def test_a_large_prompt_that_has_aged_is_told_of(stack: Stack, bus: redis.Redis) -> None:
    await stack.worker()
    bury(bus, dead_job(text="v" * 70_000))
    bus.delete("tokenbus:payload:chatcmpl-1")
    assert (await tokenbus(stack, "dead", "--json")).json[0]["prompt"] == "(gone)"
    assert "the prompt is gone" in (await tokenbus(stack, "dead", "chatcmpl-1")).out
    assert "is gone" in (await tokenbus(stack, "dead", "chatcmpl-1", "--requeue")).refusal


async def test_a_row_that_is_not_readable_does_not_break_the_list(stack: Stack, bus: redis.Redis) -> None:
    await stack.worker()
    odd = [str(bus.xadd(DEAD, row)) for row in ({"job": "{"}, {"else": "1"}, {"job": b"\xff", "reason": b"\xff"})]  # type: ignore[arg-type]
    bury(bus, dead_job())
    rows = (await tokenbus(stack, "dead", "--json")).json
    assert [row["id"] for row in rows] == [None, None, None, "chatcmpl-1-0"]
    listed = (await tokenbus(stack, "dead")).out
    assert all(entry in listed for entry in odd)
    assert "not readable" in (await tokenbus(stack, "dead", odd[0])).out
    assert "not readable" in (await tokenbus(stack, "dead", odd[0], "--requeue")).refusal
    assert (await tokenbus(stack, "dead", odd[0], "--remove")).out == f"removed {odd[0]}\n"
    assert bus.xlen(DEAD) == 3


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("nothing",), "there is no dead letter 'nothing'; the last ones are: chatcmpl-1-0"),
        (("--requeue",), "say which one: tokenbus dead JOB --requeue"),
        (("chatcmpl-1", "--requeue", "--remove"), "give one of them"),
        (("chatcmpl-1", "--requeue", "--timeout", "0"), "--timeout"),
    ],
)
async def test_what_cannot_be_done_is_one_line(
    stack: Stack, bus: redis.Redis, words: tuple[str, ...], answer: str
) -> None:
    await stack.worker()
    bury(bus, dead_job())
    assert answer in (await tokenbus(stack, "dead", *words)).refusal
