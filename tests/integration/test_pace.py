"""A worker that is much slower than its fellows leaves new jobs to them."""

from contextlib import aclosing
from typing import Any

import pytest

from shared.connection import connect
from shared.keys import Keys
from shared.messages import Claimed, Finished, encode
from tests.conftest import wait_until
from tests.integration.bus import echo_session, listening, make_info, make_job
from tests.integration.test_session import enqueue
from worker.pace import Pace

STEPS = 24  # of a job: more than twenty, of which echo makes the first two at once


async def put_lease(client: Any, keys: Keys, id: str, step_ms: float, state: Any = "ready") -> None:
    info = make_info(id, state=state, step_ms=step_ms)
    await client.set(keys.worker("echo", id), encode(info), px=60_000)
    await client.zadd(keys.workers("echo"), {id: 1})


@pytest.mark.parametrize(
    ("own", "others", "handicap"),
    [
        (50, [], 0),
        (50, [10, 25], 80),
        (15, [10], 0),  # not much slower
        (10, [2], 0),  # not worth it
        (5000, [10], 1000),
        (50, [0], 0),  # that has not stepped yet
        (0, [10], 0),  # nor this one
    ],
)
async def test_the_handicap_is_what_its_first_token_comes_later(
    client: Any, keys: Keys, own: float, others: list[float], handicap: int
) -> None:
    for number, step_ms in enumerate(others):
        await put_lease(client, keys, f"w{number}", step_ms)
    await put_lease(client, keys, "me", 1)
    await put_lease(client, keys, "leaving", 1, "draining")
    await client.zadd(keys.workers("echo"), {"gone": 1})
    pace = Pace(client, keys, "echo", "me", lambda: own)
    await pace.look()
    assert pace.handicap_ms == handicap


async def test_new_jobs_go_to_the_fast_worker_while_it_has_room(client: Any, redis_url: str, keys: Keys) -> None:
    async with (
        aclosing(connect(redis_url)) as other,
        listening(client, keys) as heard,
        echo_session(client, redis_url, keys, interval_ms=5) as (fast, _),
        echo_session(other, redis_url, keys, interval_ms=200) as (slow, _),
    ):
        await enqueue(client, keys, *(make_job(f"first-{number}", max_tokens=STEPS) for number in range(8)))
        await wait_until(lambda: slow._pace.handicap_ms > 300, description="the slow one knows")
        await wait_until(
            lambda: all(heard.of(f"first-{n}", Finished) for n in range(8)), description="both have nothing to do"
        )

        def claimers() -> list[str]:
            return [event.worker for event in heard.events if isinstance(event, Claimed)]

        async def next_ends_at_the_fast_one() -> bool:
            """The slow one may still wait in a read of before."""
            id = f"r-{len(claimers())}"
            await enqueue(client, keys, make_job(id, max_tokens=STEPS))
            await wait_until(lambda: heard.of(id, Finished), description="the end")
            return len(claimers()) >= 8 and set(claimers()[-8:]) == {fast.id}

        await wait_until(next_ends_at_the_fast_one, description="eight in a row", timeout=60)
        before = len(claimers())
        await enqueue(client, keys, *(make_job(f"burst-{number}", max_tokens=1000) for number in range(6)))
        await wait_until(
            lambda: set(claimers()[before:]) == {fast.id, slow.id},
            description="the slow one takes what the fast one has no room for",
        )
