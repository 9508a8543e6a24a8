"""The acts on job streams, on every Redis there is."""

import asyncio
from typing import Any

import msgspec
import pytest

from shared.errors import QueueFull
from shared.keys import GROUP, Keys
from shared.messages import encode
from shared.queue import Entry, JobQueue, set_aside, settle
from tests.conftest import wait_until
from tests.integration.bus import make_info, make_job


@pytest.fixture
async def queue(client: Any, keys: Keys) -> JobQueue:
    return JobQueue(client, keys)


async def live_worker(client: Any, keys: Keys, queue: JobQueue, id: str, slots: int = 4) -> None:
    info = make_info(id, slots=slots)
    await queue.create_groups("echo", id)
    await client.set(keys.worker("echo", id), encode(info), px=60_000)
    await client.zadd(keys.workers("echo"), {id: 1})


def jobs(count: int, **fields: Any) -> list[Any]:
    return [make_job(f"r-{i}", **fields) for i in range(count)]


async def test_a_job_comes_out_as_it_went_in(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    (entry,) = await queue.enqueue(jobs(1), 10, "pull")
    (claim,) = await queue.claim("echo", "w1", free=4, block_ms=0)
    assert claim.job == make_job("r-0", deadline=claim.job.deadline)
    assert claim.entry == entry


async def test_settling_empties_the_stream_and_can_be_repeated(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    (entry,) = await queue.enqueue(jobs(1), 10, "pull")
    await queue.claim("echo", "w1", free=4, block_ms=0)
    for _ in range(2):
        await client.line.batch(settle([entry]))
    assert await client.xlen(entry.stream) == 0
    assert (await client.xpending(entry.stream, GROUP))["pending"] == 0


async def test_a_full_queue_takes_none_of_a_request(client: Any, keys: Keys, queue: JobQueue) -> None:
    await queue.enqueue(jobs(3), 3, "pull")
    with pytest.raises(QueueFull, match="3 requests wait"):
        await queue.enqueue(jobs(2), 3, "pull")
    assert await client.xlen(keys.jobs("echo", "normal")) == 3


async def test_jobs_that_run_do_not_count_as_waiting(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    await queue.enqueue(jobs(3), 3, "pull")
    await queue.claim("echo", "w1", free=3, block_ms=0)
    await queue.enqueue(jobs(1), 3, "pull")


async def test_a_burst_spreads_over_the_workers(client: Any, keys: Keys, queue: JobQueue) -> None:
    """Workers that ask for all they can hold would take 21/1/1/1."""
    for id in ("w1", "w2", "w3", "w4"):
        await live_worker(client, keys, queue, id, slots=32)
    await queue.enqueue(jobs(24), 100, "pull")
    first_round = [len(await queue.claim("echo", id, free=32, block_ms=0)) for id in ("w1", "w2", "w3", "w4")]
    assert first_round == [6, 5, 4, 3]


async def test_no_more_is_claimed_than_there_are_free_slots(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    await queue.enqueue(jobs(10), 100, "pull")
    assert len(await queue.claim("echo", "w1", free=3, block_ms=0)) == 3


async def test_higher_classes_go_first(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    for job_class in ("batch", "normal", "high"):
        await queue.enqueue([make_job(f"{job_class}-0", job_class=job_class)], 10, "pull")
    claims = [(await queue.claim("echo", "w1", free=1, block_ms=0))[0].job.id for _ in range(3)]
    assert claims == ["high-0", "normal-0", "batch-0"]


async def test_a_waiting_worker_gets_the_next_job_at_once(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    waiting = asyncio.ensure_future(queue.claim("echo", "w1", free=1, block_ms=5000))
    await asyncio.sleep(0.05)
    await queue.enqueue(jobs(1), 10, "pull")
    assert len(await asyncio.wait_for(waiting, 2)) == 1


async def test_groups_that_are_gone_are_created_again(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    lease = await client.get(keys.worker("echo", "w1"))
    await client.flushall()
    await queue.enqueue(jobs(1), 10, "pull")
    await client.set(keys.worker("echo", "w1"), lease, px=60_000)
    assert await queue.claim("echo", "w1", free=1, block_ms=10) == []
    assert len(await queue.claim("echo", "w1", free=1, block_ms=10)) == 1


async def test_a_worker_that_lost_its_lease_makes_no_streams(client: Any, keys: Keys, queue: JobQueue) -> None:
    """The janitor has taken its inbox away, and would never learn of another one."""
    await live_worker(client, keys, queue, "w1")
    await client.flushall()
    for _ in range(2):
        assert await queue.claim("echo", "w1", free=1, block_ms=10) == []
    assert await client.keys("*") == []


async def test_what_a_lost_reply_delivered_is_found_again(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    await queue.enqueue(jobs(2), 10, "pull")
    claimed = await queue.claim("echo", "w1", free=4, block_ms=0)
    assert await queue.claimed_before("echo", "w1") == claimed


async def test_an_entry_that_is_no_job_is_dropped(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    stream = keys.jobs("echo", "normal")
    await client.xadd(stream, {"job": "garbage"})
    await client.xadd(stream, {"nonsense": "1"})
    assert await queue.claim("echo", "w1", free=4, block_ms=0) == []
    assert await client.xlen(stream) == 0


async def test_a_large_payload_lies_once_beside_its_jobs(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    payload = {"messages": [{"role": "user", "content": "x" * 70_000}]}
    small, blob = set_aside(jobs(4, payload=payload))
    assert blob is not None
    await queue.put_aside("r", blob)
    await queue.enqueue(small, 10, "pull")
    claims = await queue.claim("echo", "w1", free=4, block_ms=0)
    assert [claim.job.payload for claim in claims] == [0, 0, 0, 0]
    assert msgspec.json.decode(await client.get(keys.payload("r"))) == [payload]
    assert await client.pttl(keys.payload("r")) > 0


async def test_a_reissue_takes_the_old_entry_away_and_goes_to_the_front(
    client: Any, keys: Keys, queue: JobQueue
) -> None:
    await live_worker(client, keys, queue, "w1")
    (old,) = await queue.enqueue(jobs(1), 10, "pull")
    await queue.claim("echo", "w1", free=1, block_ms=0)
    new = await queue.reissue(old, make_job("r-0", attempt=1))
    assert await client.xlen(old.stream) == 0
    assert new.stream == keys.jobs("echo", "high")
    (claim,) = await queue.claim("echo", "w1", free=1, block_ms=0)
    assert claim.job.attempt == 1


async def test_the_shortest_queue_gets_the_job(client: Any, keys: Keys, queue: JobQueue) -> None:
    for id in ("w1", "w2", "w3"):
        await live_worker(client, keys, queue, id, slots=4)
    entries = await queue.enqueue(jobs(9), 100, "shortest_queue")
    by_worker = [entry.addressed_to for entry in entries]
    assert {by_worker.count(id) for id in ("w1", "w2", "w3")} == {3}


async def test_load_is_measured_in_slots(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "small", slots=2)
    await live_worker(client, keys, queue, "large", slots=6)
    entries = await queue.enqueue(jobs(8), 100, "shortest_queue")
    assert [entry.addressed_to for entry in entries].count("large") == 6


@pytest.mark.parametrize("method", ["shortest_queue", "lottery"])
async def test_when_all_are_full_jobs_wait_in_the_models_stream(
    method: Any, client: Any, keys: Keys, queue: JobQueue
) -> None:
    for id in ("w1", "w2"):
        await live_worker(client, keys, queue, id, slots=2)
    entries = await queue.enqueue(jobs(7), 100, method)
    assert [entry.addressed_to for entry in entries].count("") == 3
    assert await client.xlen(keys.jobs("echo", "normal")) == 3


async def test_the_lottery_reaches_every_worker(client: Any, keys: Keys, queue: JobQueue) -> None:
    for id in ("w1", "w2", "w3"):
        await live_worker(client, keys, queue, id, slots=32)
    entries = await queue.enqueue(jobs(60), 100, "lottery")
    assert {entry.addressed_to for entry in entries} == {"w1", "w2", "w3"}


async def test_nothing_is_addressed_to_the_dead(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "w1")
    await client.zadd(keys.workers("echo"), {"dead": 1})
    entries = await queue.enqueue(jobs(4), 100, "lottery")
    assert {entry.addressed_to for entry in entries} == {"w1"}


async def test_a_consumer_with_pending_entries_is_not_forgotten(client: Any, keys: Keys, queue: JobQueue) -> None:
    """Removing it would lose the pending list, and its entries would lie in the stream for ever."""
    await live_worker(client, keys, queue, "w1")
    (entry,) = await queue.enqueue(jobs(1), 10, "pull")
    await queue.claim("echo", "w1", free=1, block_ms=0)
    await queue.leave("echo", "w1")
    assert await queue.pending_of("echo", "w1") == {Entry(entry.stream, entry.id)}


async def test_missing_entries_are_told_from_those_that_wait(client: Any, keys: Keys, queue: JobQueue) -> None:
    first, second = await queue.enqueue(jobs(2), 10, "pull")
    await client.xdel(first.stream, first.id)
    assert await queue.missing([first, second]) == {first}


async def test_a_worker_with_a_handicap_takes_only_what_has_waited(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "slow")
    await queue.enqueue(jobs(1), 10, "pull")
    assert await queue.claim("echo", "slow", free=4, block_ms=0, handicap_ms=60_000) == []

    async def claimed() -> bool:
        return bool(await queue.claim("echo", "slow", free=4, block_ms=0, handicap_ms=50))

    await wait_until(claimed, description="it has waited for 50 ms")


async def test_a_handicap_goes_by_the_oldest_that_nobody_has(client: Any, keys: Keys, queue: JobQueue) -> None:
    for worker in ("fast", "slow"):
        await live_worker(client, keys, queue, worker)
    await client.xadd(keys.jobs("echo", "normal"), {"job": encode(make_job("r-0"))}, id="1-0")  # long ago
    await queue.enqueue(jobs(1), 10, "pull")
    (old,) = await queue.claim("echo", "fast", free=1, block_ms=0)
    assert old.entry.id == "1-0"
    assert await queue.claim("echo", "slow", free=4, block_ms=0, handicap_ms=60_000) == []


async def test_a_handicap_does_not_hold_for_what_is_addressed(client: Any, keys: Keys, queue: JobQueue) -> None:
    await live_worker(client, keys, queue, "slow")
    (entry,) = await queue.enqueue(jobs(1), 10, "shortest_queue")
    assert entry.addressed_to == "slow"
    assert await queue.claim("echo", "slow", free=4, block_ms=0, handicap_ms=60_000)
