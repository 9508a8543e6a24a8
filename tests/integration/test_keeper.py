"""The responses that a gateway owns: answers that are lost, ends that meet, what was deleted. Workers are played by
hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from redis.exceptions import OutOfMemoryError

from gateway.hub import Hub
from gateway.metrics import Metrics
from gateway.recording import Recording
from gateway.responses.followers import Followers
from gateway.responses.keeper import CANCELLED, Keeper
from gateway.responses.records import Record, Records
from gateway.responses.replies import ResponseEvents
from shared.durable import DurableLogs, Log
from shared.errors import BusUnavailable, Cancelled, StreamLost
from shared.keys import Keys
from shared.messages import End, Job, Progress, Usage
from tests.conftest import wait_until
from tests.integration.bus import make_job

ID = "resp_" + "1" * 32
DONE = End(reason="stop", usage=Usage(1, 2))
PIECE = Progress(text="a", token_ids=[1])
RESPONSE = {"id": ID, "background": True, "status": "queued", "output": [], "model": "echo", "created_at": 0}


def job(**fields: Any) -> Job:
    return make_job(f"{ID}-0", logged=0, **fields)


class Bus:
    """A hub and its keeper."""

    def __init__(self, client: Any, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.hub = Hub(client, keys, "gw", Metrics(), max_queue=10, method="pull")
        self.records = Records(client, keys, 60_000)
        self.logs = DurableLogs(client, keys)
        followers = Followers(client, keys, self.records)
        self.keeper = Keeper(client, keys, self.hub, self.records, followers)

    async def append(self, before: int, made: list[Progress], end: End | None = None) -> None:
        assert await self.client.line.batch([self.logs.append(ID, 0, before, made, end)]) == [1]

    async def record(self) -> Record | None:
        return await self.records.load(ID)

    async def stored(self) -> Record:
        async def ended() -> Record | None:
            record = await self.record()
            return record if record is not None and record.end is not None else None

        record: Record = await wait_until(ended, description="it is stored")
        return record

    async def log(self) -> Log:
        log = Log()
        await self.logs.read((ID, log))
        return log


@pytest.fixture
async def bus(client: Any, keys: Keys) -> AsyncIterator[Bus]:
    bus = Bus(client, keys)
    await client.set(keys.gateway("gw"), "1", px=60_000)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(bus.keeper.run(), name="keeper"), tasks.create_task(bus.hub.run(), name="hub")]
        yield bus
        for task in running:
            task.cancel()


async def left_by_a_dead_one(bus: Bus, made: list[Progress]) -> None:
    await bus.records.create(job(gateway="gone"), RESPONSE, [])
    if made:
        await bus.append(0, made)


async def until_adopted(bus: Bus) -> Recording:
    recording: Recording = await wait_until(lambda: bus.keeper._open.get(ID), description="adopted")
    return recording


async def test_it_is_adopted_although_the_answer_that_it_is_owned_now_was_lost(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, lost = DurableLogs.own, []

    async def own_unheard(self: DurableLogs, *args: Any, **fields: Any) -> Any:
        owned = await own(self, *args, **fields)
        if not lost:
            lost.append(owned)
            raise ConnectionError("the connection to Redis was lost")
        return owned

    monkeypatch.setattr(DurableLogs, "own", own_unheard)
    await left_by_a_dead_one(bus, [PIECE])
    recording = await until_adopted(bus)
    assert lost[0] is not None
    assert [piece.text for piece in recording.pieces] == ["a"]
    assert [inflight.job.id for inflight in bus.hub] == [f"{ID}-0"]


async def test_what_was_adopted_is_the_heirs_own_when_redis_comes_back_empty(bus: Bus, client: Any, keys: Keys) -> None:
    await left_by_a_dead_one(bus, [PIECE])
    await until_adopted(bus)
    await client.flushall()
    await client.set(keys.gateway("gw"), "1", px=60_000)
    await client.client_kill_filter(_type="pubsub")  # as the gateway notices
    record = await wait_until(bus.record, description="it is stored again")
    assert record.job.gateway == "gw"
    assert await bus.logs.owner(ID) == "gw"
    assert await client.smembers(keys.owners()) == {b"gw"}


async def test_what_another_gateway_deleted_is_not_restored(bus: Bus, client: Any, keys: Keys) -> None:
    recording = await bus.keeper.open(job(), RESPONSE, [])
    await bus.logs.own(ID, "other")
    await client.delete(keys.response(ID), keys.log(ID))
    bus.keeper._subscriptions = 0
    await wait_until(lambda: bus.keeper._subscriptions == 1, description="it has looked")
    assert recording.end is None
    assert await bus.record() is None


async def test_what_redis_lost_is_there_for_whoever_asks_its_owner(bus: Bus, client: Any, keys: Keys) -> None:
    await bus.keeper.open(job(), RESPONSE, [])
    await client.flushall()
    record = await bus.keeper.load(ID)
    assert record is not None
    assert record.response == RESPONSE
    assert await bus.record() == record


async def test_what_another_gateway_may_store_again_is_not_called_unknown(bus: Bus, client: Any, keys: Keys) -> None:
    other = "resp_" + "2" * 32
    await bus.hub.ready()
    assert await bus.keeper.load(other) is None
    await client.client_kill_filter(_type="pubsub")

    async def is_unavailable() -> bool:
        try:
            await bus.keeper.load(other)
        except BusUnavailable:
            return True
        return False

    await wait_until(is_unavailable, description="it is noticed that connections were lost")
    await wait_until(lambda: bus.keeper._restored_at > 0, description="its own are restored")
    assert await is_unavailable()
    bus.keeper._restored_at -= bus.keeper.RESTORED_WITHIN_S
    assert await bus.keeper.load(other) is None


@asynccontextmanager
async def full_redis(client: Any) -> AsyncIterator[None]:
    await client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await client.config_set("maxmemory", 0)


async def test_a_cancellation_that_a_full_redis_does_not_store_is_told_so(bus: Bus, client: Any) -> None:
    await bus.hub.ready()
    recording = await bus.keeper.open(job(), RESPONSE, [])
    record = await bus.keeper.load(ID)
    assert record is not None
    async with full_redis(client):
        for _ in range(2):
            with pytest.raises(OutOfMemoryError):
                await bus.keeper.cancel(record)
        assert recording.released.is_set()
    await bus.keeper.cancel(record)
    assert (await bus.stored()).response["status"] == "cancelled"


async def test_a_full_redis_forgets_what_it_is_told_to(bus: Bus, client: Any, keys: Keys) -> None:
    await bus.hub.ready()
    await bus.keeper.open(job(), RESPONSE, [])
    await bus.append(0, [PIECE])
    record = await bus.keeper.load(ID)
    assert record is not None
    async with full_redis(client):
        await bus.keeper.delete(record)
        assert not await client.exists(keys.response(ID), keys.log(ID))

    async def is_fenced() -> bool:
        owner = await client.get(keys.owner(ID))
        return owner is not None and not owner.startswith(b"0 ")

    await wait_until(is_fenced, description="what makes it cannot write any more")
    await wait_until(bus.keeper._to_store.empty, description="all is stored")
    assert not await client.exists(keys.response(ID), keys.log(ID))


async def test_what_ends_as_redis_comes_back_empty_is_stored_whole(bus: Bus, client: Any, keys: Keys) -> None:
    items = [{"id": "msg_1", "type": "message", "role": "user", "status": "completed", "content": []}]
    recording = await bus.keeper.open(job(), RESPONSE, items)
    recording.add(0, PIECE)
    await client.flushall()
    await client.set(keys.gateway("gw"), "1", px=60_000)
    recording.ended(DONE)
    record = await bus.stored()
    assert record.items == items
    assert (record.end, record.job) == (DONE, None)
    assert record.response["output"][0]["content"][0]["text"] == "a"
    assert 0 < await client.pttl(keys.response(ID)) <= 60_000


async def test_what_no_engine_can_go_on_with_fails_when_it_is_adopted(bus: Bus) -> None:
    """It gave no token ids: begun anew, its text would come twice."""
    await left_by_a_dead_one(bus, [Progress(text="a")])
    record = await bus.stored()
    assert record.end is not None
    assert record.end.code == "worker_lost"
    assert not list(bus.hub)


async def test_a_worker_that_ended_before_it_was_cancelled_counts(bus: Bus) -> None:
    """Whoever reads the log is told the same as who asks for the response."""
    recording = await bus.keeper.open(job(), RESPONSE, [])
    await bus.append(0, [PIECE], DONE)
    recording.fail(Cancelled(CANCELLED))
    record = await bus.stored()
    assert (record.end, record.response["status"]) == (DONE, "completed")
    assert (await bus.log()).end == DONE
    assert record.response["output"][0]["content"][0]["text"] == "a"


async def test_what_was_deleted_is_not_stored_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is stored, and the answer lost; so it is stored once more."""
    recording = await bus.keeper.open(job(), RESPONSE, [])
    finish = Records.finish

    async def finish_unheard(self: Records, *args: Any) -> None:
        await finish(self, *args)
        raise ConnectionError("the connection to Redis was lost")

    monkeypatch.setattr(Records, "finish", finish_unheard)
    recording.add(0, PIECE)
    recording.ended(DONE)
    await bus.keeper.delete(await bus.stored())
    monkeypatch.undo()
    await wait_until(recording.released.is_set, description="it is done with")
    assert await bus.record() is None


async def test_a_log_that_lacks_pieces_does_not_tell_of_an_end(bus: Bus) -> None:
    """The last second of an append-only file, with what its worker wrote."""
    recording = await bus.keeper.open(job(), RESPONSE, [])
    await bus.append(0, [PIECE])
    for _ in range(2):
        recording.add(0, PIECE)
    recording.ended(DONE)
    record = await bus.stored()
    assert record.response["output"][0]["content"][0]["text"] == "aa"
    log = await bus.log()
    assert (log.made, log.end) == ([], None)


async def test_a_log_with_a_hole_is_unreadable(bus: Bus, keys: Keys, client: Any) -> None:
    await client.xadd(keys.log(ID), {"made": orjson.dumps([{"text": "b"}])}, id="2-0")
    await client.pexpire(keys.log(ID), 60_000)
    log = await bus.log()
    assert log.end is not None
    assert (log.made, log.end.code) == ([], "unreadable")


async def test_pieces_that_were_written_again_are_read_once(bus: Bus, keys: Keys, client: Any) -> None:
    await bus.keeper.open(job(), RESPONSE, [])
    await bus.append(0, [PIECE, Progress(text="b")])
    log = await bus.log()
    await client.delete(keys.log(ID))
    await bus.append(0, [PIECE, Progress(text="b"), Progress(text="c")], DONE)
    await bus.logs.read((ID, log))
    assert ([piece.text for piece in log.made], log.end) == (["a", "b", "c"], DONE)


async def test_a_stream_whose_rest_is_lost_is_no_failed_response(bus: Bus, client: Any, keys: Keys) -> None:
    recording = await bus.keeper.open(job(), RESPONSE, [])
    record = await bus.keeper.load(ID)
    assert record is not None
    followers = Followers(client, keys, bus.records)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(followers.run(), name="followers")
        followed = await followers.open(record, in_part=False)
        recording.add(0, PIECE)  # its worker could not log it
        recording.ended(DONE)
        assert (await bus.stored()).end == DONE
        await followed.released.wait()
        running.cancel()
    assert followed.end is not None
    told = ResponseEvents(RESPONSE).error(StreamLost(followed.end.message))
    assert (followed.end.code, told.split(b"\n")[0]) == ("stream_lost", b"event: error")
