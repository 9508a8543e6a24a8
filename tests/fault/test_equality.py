"""A reply of the real model whose worker, bus or link broke in the middle equals the undisturbed one."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
import pytest
import pytest_asyncio
import redis

from shared.keys import Keys
from tests.conftest import RedisServer, wait_until
from tests.e2e.conftest import CHAT, chat_weights, server_in
from tests.e2e.wire import Connection
from tests.fault.replies import ONCE_UPON_A_TIME, Reply, all_replies, ask, straddling_stop
from tests.fault.streams import Progress, metric, redelivered, rows
from tests.fault.wiretap import Wiretap
from tests.link import Link
from tests.processes import Process, Stack

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

FLAGS = (
    *("--model-path", chat_weights(), "--model-names", CHAT, "--max-model-len", "512"),
    *("--threads", "1", "--dtype", "float32", "--reasoning-parser", "think"),
)
DISTURB_BETWEEN = (180, 420)  # chunks, of the 600 or so that all streams make


class World:
    """One gateway, three workers that each have a link of their own, and a Redis with an append-only file."""

    gateway: Process

    def __init__(self, stack: Stack, server: RedisServer) -> None:
        self.stack = stack
        self.server = server
        self.workers: list[tuple[Process, Link]] = []
        self.stop = ""
        self.undisturbed: dict[str, Reply] = {}

    async def start(self) -> None:
        """Three workers at once: of two nobody is left when one has been killed and one has left, and loading the model
        anew costs more than all the rest."""
        self.gateway = await self.stack.gateway()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(self._start_worker(), name="worker")
        await rows(self.stack, 3)

    async def _start_worker(self) -> None:
        link = Link(self.server.url)
        self.workers.append((await self.stack.worker(*FLAGS, "--redis-url", link.url), link))

    async def victim(self) -> tuple[Process, Link]:
        """The busiest that lives."""
        living = [pair for pair in self.workers if not pair[0].ended]
        used = {row["worker"]: row["slots_used"] for row in await self.stack.registry()}
        return max(living, key=lambda pair: used.get(self.worker_id(pair[0]), 0))

    def worker_id(self, process: Process) -> str:
        """Its present one; the last that it announced."""
        lines = [line for line in process.said().splitlines() if " serves " in line]
        return lines[-1].split(" serves ")[0].split()[-1]

    def close(self) -> None:
        for _, link in self.workers:
            link.close()
        self.stack.close()
        self.server.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    server = server_in(tmp_path_factory.mktemp("redis"), "--appendonly", "yes")
    server.start()
    world = World(Stack(server.url, tmp_path_factory.mktemp("model")), server)
    try:
        await world.start()
        world.stop = await straddling_stop(world.stack)
        world.undisturbed = await all_replies(world.stack, world.stop, Progress())
        yield world
    finally:
        world.close()


async def stopped_for_longer_than_its_lease(world: World) -> None:
    """It wakes while others go on with what it had. Whatever it still says is fenced off."""
    process, _ = await world.victim()
    former = world.worker_id(process)
    before = await redelivered(world.stack, reason="worker_lost")
    fenced = await metric(world.stack, "fenced_deltas_total")

    async def given_away() -> bool:
        return await redelivered(world.stack, reason="worker_lost") > before

    process.signal(signal.SIGSTOP)
    await wait_until(given_away, description="its jobs are given away")
    tap = Wiretap(world.server.url)
    process.signal(signal.SIGCONT)

    await wait_until(lambda: world.worker_id(process) != former, description="it is back under a new id")
    spoke = len(tap.of(former))
    tap.close()
    assert await metric(world.stack, "fenced_deltas_total") >= fenced + spoke


async def frames_lost(world: World) -> None:
    """The gateway subscribes again within a millisecond or two, and a step of the model takes far longer: its ear is
    closed again and again, until something was lost."""
    before = await redelivered(world.stack, reason="gap")
    async with asyncio.timeout(20):
        while await redelivered(world.stack, reason="gap") == before:
            await asyncio.to_thread(close_ear, world.server.url, world.gateway)


def close_ear(redis_url: str, gateway: Process) -> None:
    """For some steps' time."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        for _ in range(20):
            ports = {connection.laddr.port for connection in psutil.Process(gateway.pid).net_connections()}
            for row in client.client_list(_type="pubsub"):
                if int(row["addr"].rpartition(":")[2]) in ports:
                    client.client_kill_filter(_id=row["id"])


async def redis_restarted(world: World) -> None:
    world.server.kill()
    world.server.start()


async def cut_off(world: World) -> None:
    """Until its jobs are elsewhere; then the way is free again."""
    before = await redelivered(world.stack, reason="worker_lost")
    process, link = await world.victim()
    former = world.worker_id(process)
    link.cut()
    try:

        async def given_away() -> bool:
            return await redelivered(world.stack, reason="worker_lost") > before

        await wait_until(given_away, description="its jobs are given away")
    finally:
        link.reset()

    await wait_until(lambda: world.worker_id(process) != former, description="it is back under a new id")


async def killed(world: World) -> None:
    (await world.victim())[0].kill()


async def asked_to_leave(world: World) -> None:
    assert await asyncio.to_thread((await world.victim())[0].leave, 2) == 0


FAULTS: dict[Callable[[World], Awaitable[None]], str | None] = {  # with the reason that the metrics give, if it is one
    stopped_for_longer_than_its_lease: "worker_lost",
    frames_lost: "gap",
    redis_restarted: None,
    cut_off: "worker_lost",
    killed: "worker_lost",  # last: nobody comes in its place
    asked_to_leave: "released",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_every_reply_equals_the_undisturbed_one(world: World, fault: Callable[[World], Awaitable[None]]) -> None:
    moment = random.Random(fault.__name__).randrange(*DISTURB_BETWEEN)
    progress, before = Progress(), await redelivered(world.stack)
    of_reason = await redelivered(world.stack, reason=FAULTS[fault] or "")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(all_replies(world.stack, world.stop, progress), name="replies")
        await progress.reached(moment)
        await fault(world)
    assert_equal(running.result(), world.undisturbed)
    if reason := FAULTS[fault]:
        assert await redelivered(world.stack, reason=reason) > of_reason
    print(f"after {moment} chunks: {await redelivered(world.stack) - before:.0f} re-issued, {progress.chunks} in all")
    await wait_until(lambda: is_empty(world), description="nothing is left in the streams")


def assert_equal(replies: dict[str, Reply], undisturbed: dict[str, Reply]) -> None:
    for name, expected in undisturbed.items():
        assert replies[name] == expected, name
        assert replies[name].is_scored_as(expected), name


async def test_the_undisturbed_replies_are_worth_comparing(world: World) -> None:
    replies = world.undisturbed
    assert replies["stop"].finish_reasons == [["stop"]]
    assert world.stop not in replies["stop"].texts[0]
    assert len(set(replies["choices"].texts)) == 3
    assert replies["greedy"].texts != replies["seeded"].texts
    assert any(ord(letter) > 127 for letter in replies["unicode"].texts[0])
    assert replies["at least"].finish_reasons == [["stop"]]
    assert '"title"' in replies["schema"].texts[0]
    assert [name for name, _ in replies["call"].calls[0]] == ["write_letter"]
    assert len(replies["call"].calls[0][0][1]) > 60
    assert len(replies["thoughts"].thoughts[0]) > 20
    assert replies["thoughts"].texts[0]
    for name, reply in replies.items():
        assert reply.usage is not None
        assert reply.usage["completion_tokens"] >= 20, name
        scored = [one for some in reply.logprobs for one in some]
        if scored:
            of_prompt = len(ONCE_UPON_A_TIME) if name == "ids" else 0
            assert len(scored) == reply.usage["completion_tokens"] + of_prompt, name
    assert {name for name, reply in replies.items() if any(reply.logprobs)} == {
        *("seeded", "stop", "choices", "ids", "whole", "schema", "call", "thoughts")
    }
    choices = replies["choices"].usage
    assert choices is not None
    assert choices["prompt_tokens"] < 50  # not three times that


async def test_a_worker_leaves_within_two_seconds_of_a_long_prompts_arrival(world: World) -> None:
    """Whoever is left; nobody has to take over what it hands back."""
    process, _ = await world.victim()
    connection = await Connection.open(world.stack)
    await connection.send(ask("rain and sun " * 160, 100))
    await wait_until(lambda: pending(world) == 1, description="it is claimed", every=0.005)
    assert await asyncio.to_thread(process.leave, 2) == 0
    await wait_until(lambda: waiting(world) == 1, description="the job waits again", timeout=1)
    connection.reset()
    await wait_until(lambda: is_empty(world), description="nothing is left")


def waiting(world: World) -> int:
    return length(world) - pending(world)


def is_empty(world: World) -> bool:
    return length(world) == 0


def length(world: World) -> int:
    with redis.Redis.from_url(world.server.url) as client:
        return sum(client.xlen(stream) for stream in Keys().job_streams(CHAT))


def pending(world: World) -> int:
    with redis.Redis.from_url(world.server.url) as client:
        return sum(client.xpending(stream, "workers")["pending"] for stream in Keys().job_streams(CHAT))
