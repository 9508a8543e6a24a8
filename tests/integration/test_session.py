"""One life of a worker on the bus: claims, progress, aborts, leaving."""

import asyncio
from typing import Any

import pytest

from shared.keys import GROUP, Keys
from shared.messages import Abort, Claimed, Delta, Drain, Failed, Finished, Released, Resume, encode
from shared.queue import JobQueue
from tests.conftest import wait_until
from tests.integration.bus import echo_session, listening, make_job
from worker.engines.base import Output
from worker.inquiry import Inquiry
from worker.session import Leaving


async def enqueue(client: Any, keys: Keys, *jobs: Any) -> list[Any]:
    return await JobQueue(client, keys).enqueue(jobs, 100, "pull")


async def is_settled(client: Any, keys: Keys) -> bool:
    """As on a fresh system: nothing waits, nothing is pending."""
    for stream in keys.job_streams("echo"):
        if await client.xlen(stream) or (await client.xpending(stream, GROUP))["pending"]:
            return False
    return True


async def test_a_job_is_claimed_run_finished_and_settled(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys) as (session, _):
        (entry,) = await enqueue(client, keys, make_job("r-0", "a b c", max_tokens=4))
        await wait_until(lambda: heard.of("r-0", Finished), description="the end")
        await wait_until(lambda: is_settled(client, keys), description="settled")
    (claimed,) = heard.of("r-0", Claimed)
    (finished,) = heard.of("r-0", Finished)
    assert (claimed.worker, claimed.stream, claimed.entry) == (session.id, entry.stream, entry.id)
    assert heard.events[0] is claimed
    assert heard.text("r-0") == "a b c a"
    assert [token for delta in heard.of("r-0", Delta) for token in delta.token_ids] == [0, 1, 2, 0]
    assert [event.seq for event in heard.events[1:]] == list(range(len(heard.events) - 1))
    assert (finished.reason, finished.usage.prompt_tokens, finished.usage.completion_tokens) == ("length", 3, 4)


async def test_what_the_client_got_wrong_is_said_and_settled(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys):
        await enqueue(client, keys, make_job("r-0", kind="embedding", payload={"inputs": ["x"]}))
        await wait_until(lambda: heard.of("r-0", Failed), description="the failure")
        await wait_until(lambda: is_settled(client, keys), description="settled")
    assert heard.of("r-0", Failed)[0].code == "unsupported_model"


async def test_a_resumed_job_says_only_what_is_new(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys):
        await enqueue(client, keys, make_job("r-0", "a b c", max_tokens=5, attempt=1, resume=Resume([0, 1], 3)))
        await wait_until(lambda: heard.of("r-0", Finished), description="the end")
    assert heard.text("r-0") == " c a b"
    assert heard.of("r-0", Finished)[0].usage.completion_tokens == 5


@pytest.mark.parametrize("resume", [Resume([0, 1, 2], 5), Resume([0, 1], 0)])
async def test_a_job_that_was_done_already_only_finishes(
    resume: Resume, client: Any, redis_url: str, keys: Keys
) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys):
        limit = len(resume.token_ids)
        await enqueue(client, keys, make_job("r-0", "a b c", max_tokens=limit, attempt=1, resume=resume))
        await wait_until(lambda: heard.of("r-0", Finished), description="the end")
    assert heard.text("r-0") == "a b c"[resume.chars_sent : 2 * limit - 1]
    assert sum(len(delta.token_ids) for delta in heard.of("r-0", Delta)) == 0


async def test_a_cancelled_or_overdue_job_is_settled_unrun(client: Any, redis_url: str, keys: Keys) -> None:
    await client.set(keys.cancelled("r-0"), "1", px=60_000)
    await enqueue(client, keys, make_job("r-0"), make_job("r-1", deadline=1))
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys):
        await wait_until(lambda: is_settled(client, keys), description="settled")
        await enqueue(client, keys, make_job("s-0"))
        await wait_until(lambda: heard.of("s-0", Finished), description="the next job")
    assert not [event for event in heard.events if event.job in ("r-0", "r-1")]


async def test_an_abort_frees_the_slot(client: Any, redis_url: str, keys: Keys) -> None:
    async with (
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, slots=1, interval_ms=10) as (
            session,
            _,
        ),
    ):
        await enqueue(client, keys, make_job("r-0", max_tokens=5000))
        await wait_until(lambda: heard.of("r-0", Delta), description="the stream runs")
        await client.publish(keys.control(session.id), encode(Abort("r-0", 0)))
        await enqueue(client, keys, make_job("s-0"))
        await wait_until(lambda: heard.of("s-0", Finished), description="the next job runs in the only slot")
    assert not heard.of("r-0", Finished)


@pytest.mark.parametrize("text", ["half \ud83d", 5])
async def test_what_cannot_be_passed_on_fails_its_own_job(client: Any, redis_url: str, keys: Keys, text: Any) -> None:
    """Half a character, and what is no text: no engine should make either."""
    async with (
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, slots=2, interval_ms=10) as (session, _),
    ):
        await enqueue(client, keys, make_job("r-0", max_tokens=5000), make_job("s-0", max_tokens=60))
        await wait_until(lambda: heard.of("r-0", Delta) and heard.of("s-0", Delta), description="both run")
        session.deliver([Output(id="r-0#0", text=text), Output(id="s-0#0")])
        await wait_until(lambda: heard.of("r-0", Failed), description="its failure")
        await wait_until(lambda: heard.of("s-0", Finished), description="the other's end")
    assert len(heard.text("s-0").split()) == 60


async def test_an_abort_of_another_attempt_is_not_for_this_one(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys, interval_ms=5) as (session, _):
        await enqueue(client, keys, make_job("r-0", max_tokens=20, attempt=1))
        await wait_until(lambda: heard.of("r-0", Delta), description="the stream runs")
        await client.publish(keys.control(session.id), encode(Abort("r-0", 0)))
        await wait_until(lambda: heard.of("r-0", Finished), description="the end")


async def test_a_worker_that_drains_hands_back_and_says_goodbye(client: Any, redis_url: str, keys: Keys) -> None:
    async with (
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, slots=2, interval_ms=10) as (
            session,
            task,
        ),
    ):
        await enqueue(client, keys, make_job("r-0", max_tokens=5000), make_job("r-1", max_tokens=5000))
        await wait_until(lambda: heard.of("r-0", Delta) and heard.of("r-1", Delta), description="both run")
        await client.publish(keys.control(session.id), encode(Drain()))
        assert await asyncio.wait_for(task, 2) is Leaving.DRAIN
        await wait_until(lambda: heard.of("r-0", Released) and heard.of("r-1", Released), description="handed back")
        assert await is_settled(client, keys)
        assert not await client.exists(keys.worker("echo", session.id), keys.inbox("echo", session.id))
        assert await client.xinfo_consumers(keys.jobs("echo", "normal"), GROUP) == []
        made = [token for delta in heard.of("r-0", Delta) for token in delta.token_ids]
        assert heard.text("r-0").split() == ["abc"[token] for token in made]


async def test_what_was_addressed_to_a_worker_that_drains_is_handed_back(
    client: Any, redis_url: str, keys: Keys
) -> None:
    async with (
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, slots=1, interval_ms=10) as (
            session,
            task,
        ),
    ):
        await enqueue(client, keys, make_job("r-0", max_tokens=5000))
        await wait_until(lambda: heard.of("r-0", Delta), description="the only slot is taken")
        await client.xadd(keys.inbox("echo", session.id), {"job": encode(make_job("s-0"))})
        session.leave(Leaving.DRAIN)
        await asyncio.wait_for(task, 3)
        await wait_until(lambda: heard.of("s-0", Released), description="handed back unrun")


async def test_with_a_drain_timeout_streams_may_end(client: Any, redis_url: str, keys: Keys) -> None:
    async with (
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, interval_ms=5, drain_timeout=10) as (session, task),
    ):
        await enqueue(client, keys, make_job("r-0", max_tokens=30))
        await wait_until(lambda: heard.of("r-0", Delta), description="the stream runs")
        session.leave(Leaving.DRAIN)
        await asyncio.wait_for(task, 5)
        await wait_until(lambda: heard.of("r-0", Finished), description="the end")
    assert not heard.of("r-0", Released)


async def test_with_a_drain_timeout_what_has_not_started_is_handed_back_at_once(
    client: Any, redis_url: str, keys: Keys
) -> None:
    async with (
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, slots=1, interval_ms=10, drain_timeout=60) as (session, task),
    ):
        await enqueue(client, keys, make_job("r-0", max_tokens=5000))
        await wait_until(lambda: heard.of("r-0", Delta), description="the only slot is taken")
        await client.xadd(keys.inbox("echo", session.id), {"job": encode(make_job("s-0"))})
        session.leave(Leaving.DRAIN)
        await wait_until(lambda: heard.of("s-0", Released), description="handed back", timeout=3)
        assert not task.done()
        assert not heard.of("r-0", Released)
        session.leave(Leaving.DRAIN)  # asked again: without waiting
        await asyncio.wait_for(task, 3)
        await wait_until(lambda: heard.of("r-0", Released), description="handed over")


async def test_jobs_of_a_gateway_that_is_gone_are_dropped(client: Any, redis_url: str, keys: Keys) -> None:
    async with echo_session(client, redis_url, keys, slots=1, interval_ms=5):
        await client.set(keys.payload("r"), encode([make_job().payload]), px=60_000)
        await enqueue(client, keys, make_job("r-0", max_tokens=5000, gateway="nobody", payload=0))
        await wait_until(lambda: is_settled(client, keys), description="dropped and settled")
        assert not await client.exists(keys.payload("r"))
        async with listening(client, keys) as heard:
            await enqueue(client, keys, make_job("s-0"))
            await wait_until(lambda: heard.of("s-0", Finished), description="the slot is free")


async def test_a_gateway_that_only_subscribes_again_keeps_its_jobs(client: Any, redis_url: str, keys: Keys) -> None:
    """PUBLISH answers 0 while it is deaf; its lease tells that it lives."""
    await client.set(keys.gateway("gw"), "1", px=60_000)
    async with echo_session(client, redis_url, keys, interval_ms=10):
        await enqueue(client, keys, make_job("r-0", max_tokens=60))
        await wait_until(lambda: client.xlen(keys.jobs("echo", "normal")), description="it is claimed")
        async with listening(client, keys) as heard:
            await wait_until(lambda: heard.of("r-0", Finished), description="the end is heard")


async def test_a_suspect_runs_alone(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys, slots=4, interval_ms=2):
        await enqueue(client, keys, make_job("r-0", max_tokens=50))
        await wait_until(lambda: heard.of("r-0", Delta), description="another runs")
        await enqueue(client, keys, make_job("s-0", crashes=2, max_tokens=20), make_job("t-0", max_tokens=5))
        await wait_until(lambda: heard.of("t-0", Finished), description="all end")
    order = [event.job for event in heard.events if isinstance(event, Finished)]
    first = {
        job: next(i for i, event in enumerate(heard.events) if event.job == job and isinstance(event, Delta))
        for job in order
    }
    last = {
        job: next(i for i, event in enumerate(heard.events) if event.job == job and isinstance(event, Finished))
        for job in order
    }
    for other in ("r-0", "t-0"):
        assert last["s-0"] < first[other] or last[other] < first["s-0"], f"{other} ran beside the suspect"


async def test_a_suspect_is_announced_only_when_it_starts(client: Any, redis_url: str, keys: Keys) -> None:
    """Should a neighbour kill the worker while it waits, the blame is not its own."""
    async with (
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, interval_ms=5),
    ):
        await enqueue(client, keys, make_job("r-0", max_tokens=100))
        await wait_until(lambda: heard.of("r-0", Delta), description="another runs")
        await enqueue(client, keys, make_job("s-0", crashes=2))
        stream = keys.jobs("echo", "normal")

        async def both_are_held() -> bool:
            return (await client.xpending(stream, GROUP))["pending"] == 2

        await wait_until(both_are_held, description="the suspect waits at the worker")
        assert not heard.of("s-0", Claimed)
        await wait_until(lambda: heard.of("s-0", Finished), description="it ran")
    ended = heard.events.index(heard.of("r-0", Finished)[0])
    assert heard.events.index(heard.of("s-0", Claimed)[0]) > ended


async def test_a_job_whose_look_up_failed_is_read_again(
    client: Any, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection drops after the claim: what was delivered lies in the pending list."""
    look_up, failures = Inquiry.into, [ConnectionError("dropped")]

    async def fail_once(self: Inquiry, new: list[Any]) -> Any:
        if failures:
            raise failures.pop()
        return await look_up(self, new)

    monkeypatch.setattr(Inquiry, "into", fail_once)
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys):
        await enqueue(client, keys, make_job("r-0"))
        await wait_until(lambda: heard.of("r-0", Finished), description="it ran all the same")
        await wait_until(lambda: is_settled(client, keys), description="settled")


async def test_nothing_is_claimed_without_a_lease(client: Any, redis_url: str, keys: Keys) -> None:
    """It would be taken for lost at once, and the crash be laid to it."""
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys) as (session, _):
        queue = JobQueue(client, keys)
        await client.delete(keys.worker("echo", session.id))
        await enqueue(client, keys, make_job("r-0"))
        assert await queue.claim("echo", session.id, free=1, block_ms=0) == []
        # A read that was blocking already gets it all the same, and leaves it where the gateway looks for it.
        await wait_until(lambda: session._leaving, description="the session ends")
        assert await client.xlen(keys.jobs("echo", "normal")) == 1
    assert not heard.of("r-0", Claimed)


async def test_a_lost_lease_ends_the_session_without_a_word(client: Any, redis_url: str, keys: Keys) -> None:
    async with (
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, interval_ms=10) as (
            session,
            task,
        ),
    ):
        await enqueue(client, keys, make_job("r-0", max_tokens=5000))
        await wait_until(lambda: heard.of("r-0", Delta), description="the stream runs")
        await client.delete(keys.worker("echo", session.id))
        assert await asyncio.wait_for(task, 5) is Leaving.LEASE_LOST
        assert not await client.exists(keys.worker("echo", session.id))
    assert not heard.of("r-0", Released)
