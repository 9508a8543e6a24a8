"""The gateway's side: fencing, re-issue, and what it does when no event comes. Workers are played by hand."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import ANY

import msgspec
import pytest
from redis.exceptions import ReadOnlyError

from gateway.asked import Asked
from gateway.demand import Demand
from gateway.errands import Errands
from gateway.hub import Hub
from gateway.inflight import MOST_MILESTONES, InFlight, Mailbox, Siblings
from gateway.metrics import Metrics
from gateway.traces import TraceBudget
from gateway.watch import Watch
from registry.directory import Directory
from shared.errors import DeadlineExceeded, NoWorkers, QueueFull, UnsupportedModel, WorkerLost
from shared.keys import GROUP, Keys
from shared.messages import (
    Abort,
    Claimed,
    Delta,
    Failed,
    Finished,
    Frame,
    Job,
    Milestone,
    Released,
    Resume,
    Usage,
    decode_control,
    decode_trace,
    encode,
)
from shared.queue import Claim, Entry, JobQueue
from tests.conftest import wait_until
from tests.integration.bus import make_job, subscribed


class Bus:
    """A hub and its watch, and workers that say what a test makes them say."""

    def __init__(self, client: Any, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.metrics = Metrics()
        self.hub = Hub(client, keys, "gw", self.metrics, max_queue=10, method="pull")
        self.queue = JobQueue(client, keys)
        self.directory = Directory(client, keys)
        demand = Demand(client, keys, self.directory, 10)
        self.watch = Watch(client, keys, self.hub, self.directory, demand, self.metrics, 60, no_worker_timeout=60)

    async def live(self, worker: str) -> None:
        await self.queue.create_groups("echo", worker)
        await self.client.set(self.keys.worker("echo", worker), "{}", px=60_000)

    async def dies(self, worker: str) -> None:
        await self.client.delete(self.keys.worker("echo", worker))

    async def submit(self, *jobs: Job) -> Mailbox:
        mailbox = Mailbox()
        await self.hub.submit(jobs or [make_job("r-0", max_tokens=9)], mailbox, Asked("r"), slots=4)
        return mailbox

    async def claim(self, worker: str) -> Claim:
        async def claims() -> list[Claim]:
            return await self.queue.claim("echo", worker, free=1, block_ms=0)

        (claim,) = await wait_until(claims, description=f"a job for {worker}", timeout=10)
        self.says(worker, claim, Claimed, stream=claim.entry.stream, entry=claim.entry.id)
        return claim  # type: ignore[no-any-return]

    def says(self, worker: str, claim: Claim, kind: type[Any], **fields: Any) -> None:
        event = kind(job=claim.job.id, attempt=claim.job.attempt, worker=worker, **fields)
        self.hub.on_frame(encode(Frame([event])))

    async def is_clean(self) -> bool:
        for stream in self.keys.job_streams("echo"):
            if await self.client.xlen(stream) or (await self.client.xpending(stream, GROUP))["pending"]:
                return False
        return True


@pytest.fixture
async def bus(client: Any, keys: Keys) -> AsyncIterator[Bus]:
    bus = Bus(client, keys)
    tasks = [asyncio.create_task(part.run()) for part in (bus.hub, bus.watch)]
    await bus.hub.ready()
    await bus.live("w1")
    await bus.live("w2")
    yield bus
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def fenced(bus: Bus) -> float:
    return sum(sample.value for sample in bus.metrics.fenced.collect()[0].samples if sample.name.endswith("_total"))


async def test_text_and_end_come_to_the_mailbox(bus: Bus) -> None:
    mailbox = await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
    bus.says("w1", claim, Finished, seq=1, reason="stop", usage=Usage(1, 1))
    (update,) = await mailbox.get()
    assert (update.text, update.finish_reason, update.usage) == ("a", "stop", Usage(1, 1))
    await wait_until(bus.is_clean, description="the gateway settles, should the worker die before it does")


async def test_a_worker_that_no_longer_listens_is_dead_before_its_lease_runs_out(bus: Bus) -> None:
    """A process that is killed loses its connections at once. Its lease here would last for a minute."""
    mailbox = await bus.submit()
    async with subscribed(bus.client, bus.keys.control("w1")):
        claim = await bus.claim("w1")
        bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
        await wait_until(lambda: ("echo", "w1") in bus.watch._heard_at, description="it was heard of")
    again = await bus.claim("w2")
    assert (again.job.attempt, again.job.crashes, again.job.resume) == (1, 1, Resume([0], 1))
    assert not await bus.client.exists(bus.keys.worker("echo", "w1"))
    assert (await mailbox.get())[0].text == "a"


async def test_a_worker_that_listens_again_at_once_keeps_its_lease(bus: Bus) -> None:
    await bus.submit()
    for _ in range(3):
        async with subscribed(bus.client, bus.keys.control("w1")):
            if not bus.watch._heard_at:
                await bus.claim("w1")
            heard = bus.watch._heard_at.get(("echo", "w1"))
            await wait_until(lambda: bus.watch._heard_at.get(("echo", "w1")) != heard, description="heard again")  # noqa: B023
    (inflight,) = bus.hub
    assert inflight.job.attempt == 0
    assert await bus.client.exists(bus.keys.worker("echo", "w1"))


async def test_when_everybody_lost_their_ears_nobody_is_judged_by_them(bus: Bus) -> None:
    await bus.submit()
    async with subscribed(bus.client, bus.keys.control("w1")):
        await bus.claim("w1")
        await wait_until(lambda: ("echo", "w1") in bus.watch._heard_at, description="it was heard of")
        await bus.client.client_kill_filter(_type="pubsub")
        await wait_until(lambda: bus.hub.subscriptions == 2, description="the gateway hears again")
        looked = bus.watch._patience._looked_at
        await wait_until(lambda: bus.watch._patience._looked_at > looked + 1.5, description="several looks later")
        (inflight,) = bus.hub
        assert inflight.job.attempt == 0


async def test_a_dead_workers_job_goes_on_elsewhere_from_its_tokens(bus: Bus) -> None:
    mailbox = await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Delta, seq=0, text="a b", token_ids=[0, 1])
    await bus.dies("w1")
    again = await bus.claim("w2")
    assert (again.job.attempt, again.job.crashes, again.job.resume) == (1, 1, Resume([0, 1], 3))
    bus.says("w2", again, Delta, seq=0, text=" c", token_ids=[2])
    bus.says("w2", again, Finished, seq=1, reason="length", usage=Usage(1, 3))
    (update,) = await mailbox.get()
    assert update.text == "a b c"
    await wait_until(bus.is_clean, description="nothing is left of either attempt")


async def test_a_worker_that_dies_before_its_claim_is_heard_loses_its_job_too(bus: Bus) -> None:
    await bus.submit()
    await bus.queue.claim("echo", "w1", free=1, block_ms=0)  # and not a word of it
    await bus.dies("w1")
    again = await bus.claim("w2")
    assert (again.job.attempt, again.job.crashes) == (1, 1)


async def test_jobs_in_the_inbox_of_a_dead_worker_go_elsewhere_without_blame(bus: Bus) -> None:
    bus.hub._method = "lottery"
    info = '{"state": "ready", "slots": 4}'
    await bus.client.set(bus.keys.worker("echo", "w1"), info, px=60_000)
    await bus.client.zadd(bus.keys.workers("echo"), {"w1": 1})
    await bus.submit()
    assert await bus.client.xlen(bus.keys.inbox("echo", "w1")) == 1
    await bus.dies("w1")
    again = await bus.claim("w2")
    assert (again.job.attempt, again.job.crashes) == (1, 0)
    assert await bus.client.xlen(bus.keys.inbox("echo", "w1")) == 0


async def test_an_old_attempt_cannot_write_and_is_told_to_stop(bus: Bus) -> None:
    mailbox = await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
    await bus.dies("w1")
    again = await bus.claim("w2")
    async with subscribed(bus.client, bus.keys.control("w1")) as orders:
        bus.says("w1", claim, Delta, seq=1, text="GHOST", token_ids=[1])
        assert decode_control(await asyncio.wait_for(anext(orders), 5)) == Abort("r-0", 0)
    bus.says("w2", again, Delta, seq=0, text=" b", token_ids=[1])
    assert (await mailbox.get())[0].text == "a b"
    assert fenced(bus) == 1


async def test_only_the_first_claimer_of_an_attempt_may_speak(bus: Bus) -> None:
    mailbox = await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w2", claim, Delta, seq=0, text="GHOST", token_ids=[9])
    bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
    assert (await mailbox.get())[0].text == "a"


async def test_frames_of_closed_jobs_are_answered_with_an_abort(bus: Bus) -> None:
    await bus.submit()
    claim = await bus.claim("w1")
    bus.hub.cancel(["r-0"])
    async with subscribed(bus.client, bus.keys.control("w1")) as orders:
        bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
        assert decode_control(await asyncio.wait_for(anext(orders), 5)) == Abort("r-0", 0)


async def test_a_gap_in_seq_reissues_from_what_is_here(bus: Bus) -> None:
    await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
    bus.says("w1", claim, Delta, seq=2, text=" c", token_ids=[2])
    again = await bus.claim("w2")
    assert (again.job.resume, again.job.crashes) == (Resume([0], 1), 0)


async def test_a_repeated_frame_is_taken_once(bus: Bus) -> None:
    mailbox = await bus.submit()
    claim = await bus.claim("w1")
    for _ in range(2):
        bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
    bus.says("w1", claim, Delta, seq=1, text=" b", token_ids=[1])
    assert (await mailbox.get())[0].text == "a b"


async def test_a_released_job_goes_on_at_once_without_blame(bus: Bus) -> None:
    await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
    bus.says("w1", claim, Released, seq=1)
    again = await bus.claim("w2")
    assert (again.job.attempt, again.job.crashes, again.job.resume) == (1, 0, Resume([0], 1))


async def test_an_end_that_was_lost_is_asked_for_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has finished and settled, but its last frame never came."""
    monkeypatch.setattr(Watch, "SILENT_S", 0.2)
    await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
    await bus.client.xdel(claim.entry.stream, claim.entry.id)
    again = await bus.claim("w2")
    assert (again.job.resume, again.job.crashes) == (Resume([0], 1), 0)


async def test_a_queued_entry_that_redis_lost_is_queued_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "QUEUED_SILENT_S", 0.2)
    await bus.submit()
    await bus.client.delete(bus.keys.jobs("echo", "normal"))
    assert (await bus.claim("w1")).job.attempt == 1


async def test_a_job_that_kills_three_workers_is_buried(bus: Bus) -> None:
    mailbox = await bus.submit()
    for worker in ("w1", "w2", "w3"):
        await bus.live(worker)
        await bus.claim(worker)
        await bus.dies(worker)
    with pytest.raises(WorkerLost, match="given up after 3 workers"):
        await asyncio.wait_for(mailbox.get(), 5)
    ((_, row),) = await wait_until(
        lambda: bus.client.xrange(bus.keys.dead("echo")), description="the dead letter is written"
    )
    assert row[b"reason"] == b"worker_lost"
    await wait_until(bus.is_clean, description="its entry is gone")


async def test_a_suspect_that_only_waited_at_a_dying_worker_is_not_blamed(bus: Bus) -> None:
    await bus.submit()
    for worker in ("w1", "w2"):
        await bus.claim(worker)
        await bus.dies(worker)
    await bus.live("w3")
    (claim,) = await wait_until(
        lambda: bus.queue.claim("echo", "w3", free=1, block_ms=0), description="w3 holds it unannounced"
    )
    assert claim.job.crashes == 2
    await bus.dies("w3")
    await bus.live("w4")
    assert (await bus.claim("w4")).job.crashes == 2


async def test_a_failure_of_the_engine_is_tried_elsewhere(bus: Bus) -> None:
    await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Failed, seq=0, code="engine_error", message="boom", retryable=True)
    assert (await bus.claim("w2")).job.crashes == 1


async def test_a_failure_of_the_request_ends_it_with_the_same_code(bus: Bus) -> None:
    mailbox = await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Failed, seq=0, code="unsupported_model", message="no")
    with pytest.raises(UnsupportedModel, match="no"):
        await mailbox.get()


async def test_an_engine_that_gives_no_token_ids_cannot_go_on(bus: Bus) -> None:
    mailbox = await bus.submit()
    claim = await bus.claim("w1")
    bus.says("w1", claim, Delta, seq=0, text="a")
    await bus.dies("w1")
    assert (await mailbox.get())[0].text == "a"
    with pytest.raises(WorkerLost, match="cannot continue"):
        await asyncio.wait_for(mailbox.get(), 5)


async def test_cancelling_takes_the_job_away_wherever_it_is(bus: Bus) -> None:
    await bus.submit(make_job("r-0"), make_job("r-1"))
    claim = await bus.claim("w1")
    async with subscribed(bus.client, bus.keys.control("w1")) as orders:
        bus.hub.cancel(["r-0", "r-1"])
        assert decode_control(await asyncio.wait_for(anext(orders), 5)) == Abort(claim.job.id, 0)
    await wait_until(bus.is_clean, description="both entries are gone")
    assert await bus.client.exists(bus.keys.cancelled("r-0"), bus.keys.cancelled("r-1")) == 2


async def test_a_request_that_is_refused_leaves_nothing(bus: Bus) -> None:
    await bus.submit(*(make_job(f"q-{i}") for i in range(10)))
    with pytest.raises(QueueFull) as refusal:
        await bus.submit(make_job("r-0"))
    assert refusal.value.retry_after is not None
    assert 1 <= refusal.value.retry_after <= 60
    assert [inflight.job.id for inflight in bus.hub if inflight.job.id == "r-0"] == []


async def test_a_refused_request_leaves_no_key_in_redis(bus: Bus) -> None:
    await bus.submit(*(make_job(f"q-{i}") for i in range(10)))
    with pytest.raises(QueueFull):
        await bus.submit(make_job("r-0"))
    bus.hub._errands.settle(Entry("x", "1-0"))  # errands are in order: once this one is done, so were those before
    await wait_until(lambda: not bus.hub._errands._pending, description="errands are sent")
    assert await bus.client.exists(bus.keys.cancelled("r-0"), bus.keys.trace("r-0")) == 0


async def test_errands_may_be_sent_by_two_at_once(bus: Bus) -> None:
    errands = Errands(bus.client, bus.keys)
    for i in range(3):
        errands.cancel(make_job(f"r-{i}"))
    await asyncio.gather(errands.flush(), errands.flush())
    assert await bus.client.exists(*(bus.keys.cancelled(f"r-{i}") for i in range(3))) == 3


async def test_errands_wait_while_redis_takes_nothing(bus: Bus) -> None:
    errands = Errands(bus.client, bus.keys)
    errands.cancel(make_job("r-0"))
    await bus.client.execute_command("REPLICAOF", "127.0.0.1", "1")  # it is read-only until told otherwise
    try:
        with pytest.raises(ReadOnlyError):
            await errands.flush()
    finally:
        await bus.client.execute_command("REPLICAOF", "NO", "ONE")
    await errands.flush()
    assert await bus.client.exists(bus.keys.cancelled("r-0"))


async def test_a_job_is_buried_once_however_often_it_is_said(bus: Bus) -> None:
    """An errand whose answer was lost is sent again."""
    errands, jobs = Errands(bus.client, bus.keys), [make_job(f"r-{number}") for number in range(3)]
    for _ in range(2):
        for job in jobs:
            errands.bury(job, "worker_lost", ["w1"])
        await errands.flush()
    assert await bus.client.xlen(bus.keys.dead("echo")) == 3


def test_under_load_the_traces_of_plain_successes_age_sooner() -> None:
    budget = TraceBudget()
    ages = [budget.ttl_ms() for _ in range(1000)]
    assert TraceBudget.LONG_PER_S <= ages.count(TraceBudget.LONG_MS) <= 2 * TraceBudget.LONG_PER_S
    assert ages[0] > ages[-1] == TraceBudget.SHORT_MS


async def test_the_wait_for_a_worker_begins_anew_when_there_was_one(bus: Bus) -> None:
    bus.watch._no_worker_timeout = 1.0
    await bus.submit(make_job("q-0"))
    await wait_until(lambda: bus.watch._alone_since, description="the wait has begun")
    bus.hub.cancel(["q-0"])
    await wait_until(lambda: not bus.watch._alone_since, description="and ends with the last who waited")


async def test_after_a_pause_of_redis_nobody_is_blamed(bus: Bus) -> None:
    """A paused Redis raises nothing: leases run out because nobody can renew them."""
    await bus.submit()
    await bus.claim("w1")
    bus.watch._patience._looked_at -= 60
    await bus.dies("w1")
    again = await bus.claim("w2")
    assert (again.job.attempt, again.job.crashes) == (1, 0)


async def test_a_deadline_ends_a_job_that_waits(bus: Bus) -> None:
    mailbox = await bus.submit(make_job("r-0", deadline=1))
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(mailbox.get(), 5)
    await wait_until(bus.is_clean, description="its entry is gone")


async def test_a_job_does_not_wait_for_ever_where_nobody_is_left(bus: Bus) -> None:
    bus.watch._no_worker_timeout = 0.3
    mailbox = await bus.submit()
    with pytest.raises(NoWorkers):
        await asyncio.wait_for(mailbox.get(), 5)


def large(word: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": word * 40_000}]}


async def test_payloads_that_lie_aside_go_when_their_last_job_ends(bus: Bus) -> None:
    await bus.submit(make_job("r-0", payload=large("a")), make_job("r-1", payload=large("b")))
    bus.hub.cancel(["r-0"])
    await bus.claim("w1")
    assert await bus.client.exists(bus.keys.payload("r"))
    bus.hub.cancel(["r-1"])

    async def gone() -> bool:
        return not await bus.client.exists(bus.keys.payload("r"))

    await wait_until(gone, description="the payloads are gone")


async def test_a_reissue_finds_its_own_payload_again_even_if_redis_lost_it(bus: Bus) -> None:
    await bus.submit(make_job("r-0", payload=large("a")), make_job("r-1", payload=large("b")))
    first, second = await bus.claim("w1"), await bus.claim("w1")
    assert (first.job.payload, second.job.payload) == (0, 1)
    await bus.client.delete(bus.keys.payload("r"))
    bus.says("w1", second, Released, seq=0)
    again = await bus.claim("w2")
    assert (again.job.id, again.job.payload) == ("r-1", 1)
    assert msgspec.json.decode(await bus.client.get(bus.keys.payload("r"))) == [large("a"), large("b")]


async def test_garbage_on_the_channel_harms_nobody(bus: Bus) -> None:
    mailbox = await bus.submit()
    claim = await bus.claim("w1")
    bus.hub.on_frame(b"\xff{")
    bus.says("w1", claim, Delta, seq=0, text="a", token_ids=[0])
    assert (await mailbox.get())[0].text == "a"


async def told(bus: Bus, *events: str) -> list[Milestone]:
    """The milestones of the job, once these events are the last of them."""

    async def so() -> list[Milestone] | None:
        blob = await bus.client.get(bus.keys.trace("r-0"))
        found = decode_trace(blob).milestones if blob else []
        return found if tuple(row.event for row in found[-len(events) :]) == events else None

    found: list[Milestone] = await wait_until(so, description=f"the trace tells of {events}")
    return found


async def test_the_trace_of_a_job_tells_its_story(bus: Bus) -> None:
    await bus.submit()
    claim = await bus.claim("w1")
    await told(bus, "accepted", "queued", "claimed")  # while it runs
    (inflight,) = bus.hub
    bus.hub.reissue(inflight, "stall", crashed=True)
    await told(bus, "claimed", "reissued")
    claim = await bus.claim("w2")
    bus.says("w2", claim, Delta, seq=0, text="a", token_ids=[0])
    bus.says("w2", claim, Finished, seq=1, reason="stop", usage=Usage(1, 1))
    rows = await told(bus, "reissued", "claimed", "first_token", "finished")
    assert [row.details for row in rows] == [
        {},
        {},
        {"worker": "w1", "attempt": 0},
        {"why": "stall", "attempt": 1, "crashes": 1, "tokens": 0, "silent_ms": ANY},
        {"worker": "w2", "attempt": 1},
        {},
        {"reason": "stop", "tokens": 1},
    ]
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    assert await bus.client.pttl(bus.keys.trace("r-0")) > TraceBudget.SHORT_MS


def test_a_job_handed_on_for_ever_has_a_bounded_trace() -> None:
    inflight = InFlight(make_job(), 0, Mailbox(), Siblings("r", 1, 1))
    inflight.mark("accepted")
    for number in range(1000):
        inflight.mark("reissued", attempt=number)
    assert len(inflight.milestones) == MOST_MILESTONES
    assert inflight.milestones[0].event == "accepted"
    assert inflight.milestones[-1].details == {"attempt": 999}
