"""The log of a durable request: who may write into it, and who answers for it."""

from typing import Any

import pytest

from shared.durable import READ_ENTRIES, DurableLogs, Log
from shared.keys import Keys
from shared.messages import End, Job, Progress, Usage
from tests.integration.bus import make_job

END = End(reason="stop", usage=Usage(1, 2))


def piece(text: str) -> Progress:
    return Progress(text=text, token_ids=[ord(text)])


def texts(log: Log) -> str:
    return "".join(piece.text for piece in log.made)


@pytest.fixture
def job() -> Job:
    """Made in the test: it has a minute."""
    return make_job("r-0", gateway="gw-1", logged=0)


@pytest.fixture
async def logs(client: Any, keys: Keys, job: Job) -> DurableLogs:
    logs = DurableLogs(client, keys)
    await client.line.batch(logs.began(job))
    return logs


async def append(
    client: Any, logs: DurableLogs, before: int, made: str, end: End | None = None, attempt: int = 0
) -> bool:
    (taken,) = await client.line.batch([logs.append("r", attempt, before, list(map(piece, made)), end)])
    return bool(taken)


async def whole(logs: DurableLogs) -> Log:
    log = Log()
    await logs.read(("r", log))
    return log


async def test_what_is_appended_is_read_in_order_up_to_the_end(client: Any, logs: DurableLogs) -> None:
    assert await append(client, logs, 0, "ab")
    log = await whole(logs)
    assert (texts(log), log.end) == ("ab", None)
    assert await append(client, logs, 2, "c", END)
    await logs.read(("r", log))
    assert (texts(log), log.end) == ("abc", END)
    await logs.read(("r", log))
    assert texts(log) == "abc"


async def test_a_long_one_is_read_in_pages(client: Any, logs: DurableLogs) -> None:
    long, short = Log(), Log()
    for place in range(2 * READ_ENTRIES):
        assert await append(client, logs, place, "a")
    await logs.read(("nobody", short), ("r", long))
    assert (texts(long), texts(short)) == ("a" * 2 * READ_ENTRIES, "")


async def test_what_is_sent_twice_is_written_once(client: Any, logs: DurableLogs) -> None:
    for _ in range(2):
        assert await append(client, logs, 0, "ab")
    for _ in range(2):
        assert await append(client, logs, 2, "c", END)
    assert texts(await whole(logs)) == "abc"


async def test_nothing_is_written_after_the_end(client: Any, logs: DurableLogs) -> None:
    assert await append(client, logs, 0, "a", END)
    assert not await append(client, logs, 1, "b")
    assert not await append(client, logs, 1, "b", END)
    assert texts(await whole(logs)) == "a"


async def test_an_end_may_come_alone(client: Any, logs: DurableLogs) -> None:
    assert await append(client, logs, 0, "a")
    assert await append(client, logs, 1, "", END)
    log = await whole(logs)
    assert (texts(log), log.end) == ("a", END)


async def test_a_log_that_lost_entries_takes_no_more(client: Any, logs: DurableLogs) -> None:
    assert await append(client, logs, 0, "a")
    assert not await append(client, logs, 2, "c")


async def test_a_new_attempt_fences_off_the_old_one(client: Any, logs: DurableLogs, job: Job) -> None:
    assert await append(client, logs, 0, "a")
    owned = await logs.own("r", "gw-1", instead_of="gw-1", attempt=3, deadline=job.deadline)
    assert owned is not None
    assert (owned.attempt, owned.before, texts(owned.log)) == (3, "gw-1", "a")
    assert not await append(client, logs, 1, "b")
    assert await append(client, logs, 1, "c", attempt=3)
    assert texts(await whole(logs)) == "ac"


async def test_one_of_two_heirs_gets_it(client: Any, logs: DurableLogs, job: Job) -> None:
    first = await logs.own("r", "gw-2", instead_of="gw-1")
    assert first is not None
    assert first.attempt == 1
    assert await logs.own("r", "gw-3", instead_of="gw-1") is None
    assert await logs.own("r", "gw-1", instead_of="gw-1", attempt=1, deadline=job.deadline) is None


async def test_it_is_taken_from_whoever_has_it(client: Any, logs: DurableLogs) -> None:
    await logs.own("r", "gw-2", instead_of="gw-1")
    owned = await logs.own("r", "gw-3")
    assert owned is not None
    assert (owned.attempt, owned.before) == (2, "gw-2")


async def test_an_owner_goes_on_after_redis_forgot_everything_and_nobody_else_does(
    client: Any, logs: DurableLogs, job: Job
) -> None:
    await client.flushall()
    assert await logs.own("r", "gw-2") is None
    assert await logs.own("r", "gw-2", instead_of="gw-1") is None
    assert not await append(client, logs, 0, "a")
    owned = await logs.own("r", "gw-1", instead_of="gw-1", attempt=2, deadline=job.deadline)
    assert owned is not None
    assert (owned.attempt, owned.log.made) == (2, [])
    assert await append(client, logs, 0, "a", attempt=2)


async def test_its_keys_have_a_time_to_live(client: Any, logs: DurableLogs, keys: Keys) -> None:
    await append(client, logs, 0, "a")
    await logs.own("r", "gw-2")
    for key in (keys.owner("r"), keys.log("r")):
        assert await client.pttl(key) > 0
