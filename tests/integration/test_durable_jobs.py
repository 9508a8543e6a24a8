"""A durable job on a worker: its pieces go into its log, and it outlives its gateway."""

from typing import Any

import pytest

from shared.durable import DurableLogs, Log
from shared.keys import Keys
from shared.messages import Delta, Failed, Finished, Job, Released, Resume
from shared.queue import JobQueue
from tests.conftest import wait_until
from tests.integration.bus import echo_session, listening, make_job
from tests.integration.test_session import is_settled


async def enqueue(client: Any, keys: Keys, **fields: Any) -> Job:
    job = make_job("r-0", "a b c", logged=fields.pop("logged", 0), **fields)
    await client.line.batch(DurableLogs(client, keys).began(job))
    await JobQueue(client, keys).enqueue([job], 100, "pull")
    return job


async def logged(client: Any, keys: Keys) -> Log:
    log = Log()
    await DurableLogs(client, keys).read(("r", log))
    return log


async def ended(client: Any, keys: Keys) -> Log:
    async def log() -> Log | None:
        found = await logged(client, keys)
        return found if found.end else None

    found: Log = await wait_until(log, description="the end in the log")
    return found


async def test_its_log_has_a_piece_for_each_delta_and_the_end(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys):
        await enqueue(client, keys, max_tokens=40)
        await wait_until(lambda: heard.of("r-0", Finished), description="the end")
        log = await ended(client, keys)
        await wait_until(lambda: is_settled(client, keys), description="settled")
    deltas = heard.of("r-0", Delta)
    assert [piece.text for piece in log.made] == [delta.text for delta in deltas]
    assert (
        [piece.token_ids for piece in log.made] == [delta.token_ids for delta in deltas] == [[i % 3] for i in range(40)]
    )
    (finished,) = heard.of("r-0", Finished)
    assert log.end is not None
    assert (log.end.reason, log.end.usage) == (finished.reason, finished.usage)
    assert await client.xlen(keys.log("r")) < 10


async def test_pieces_come_into_the_log_while_it_runs_however_slowly(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys), echo_session(client, redis_url, keys, interval_ms=1500):
        await enqueue(client, keys)

        async def begun() -> bool:
            log = await logged(client, keys)
            return bool(log.made) and log.end is None

        await wait_until(begun, description="its first pieces, before there is a last one")


async def test_it_runs_on_when_its_gateway_is_gone(client: Any, redis_url: str, keys: Keys) -> None:
    await client.set(keys.gateway("gw"), "1", px=300)
    async with echo_session(client, redis_url, keys, interval_ms=100):
        await enqueue(client, keys, max_tokens=30)
        log = await ended(client, keys)
        await wait_until(lambda: is_settled(client, keys), description="settled")
    assert not await client.exists(keys.gateway("gw"))
    assert len(log.made) == 30


async def test_what_it_cannot_do_ends_its_log_too(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys):
        await enqueue(client, keys, kind="embedding", payload={"inputs": ["x"]})
        await wait_until(lambda: heard.of("r-0", Failed), description="the failure")
        log = await ended(client, keys)
    assert log.end is not None
    assert log.end.code == "unsupported_model"


async def test_another_attempt_stops_it_and_it_hands_back(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys, interval_ms=20) as (session, _):
        await enqueue(client, keys, max_tokens=1000)
        await wait_until(lambda: heard.of("r-0", Delta), description="the first token")
        owned = await DurableLogs(client, keys).own("r", "gw-2", instead_of="gw")
        assert owned is not None
        await wait_until(lambda: heard.of("r-0", Released), description="it lets go", timeout=3)
        await wait_until(lambda: is_settled(client, keys), description="settled")
        assert session.info().running == 0
    assert len((await logged(client, keys)).made) == len(owned.log.made)


@pytest.mark.parametrize("attempt", [None, 1])
async def test_a_stale_entry_is_settled_unrun(attempt: int | None, client: Any, redis_url: str, keys: Keys) -> None:
    """Its request is forgotten, or another gateway has taken it over while it waited."""
    await enqueue(client, keys)
    if attempt is None:
        await client.delete(keys.owner("r"))
    else:
        await DurableLogs(client, keys).own("r", "gw-2", instead_of="gw")
    async with listening(client, keys) as heard, echo_session(client, redis_url, keys):
        await wait_until(lambda: is_settled(client, keys), description="settled")
    assert not heard.events
    assert not (await logged(client, keys)).made


async def test_a_resumed_one_writes_on_where_the_log_ends(client: Any, redis_url: str, keys: Keys) -> None:
    async with listening(client, keys), echo_session(client, redis_url, keys):
        first = await enqueue(client, keys, max_tokens=2)
        log = await ended(client, keys)
        await client.delete(keys.log("r"))
        await client.line.batch([DurableLogs(client, keys).append(first.request, 0, 0, log.made)])
        resume = Resume([0, 1], 3)
        owned = await DurableLogs(client, keys).own("r", "gw", instead_of="gw", attempt=1, deadline=first.deadline)
        assert owned is not None
        again = make_job("r-0", "a b c", max_tokens=5, attempt=1, resume=resume, logged=2)
        await JobQueue(client, keys).enqueue([again], 100, "pull")
        log = await ended(client, keys)
    assert "".join(piece.text for piece in log.made) == "a b c a b"
