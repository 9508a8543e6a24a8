"""The stored responses that this gateway owns: opened, ended, cancelled, deleted, adopted from gateways that died."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from redis.exceptions import OutOfMemoryError

from gateway.durable import OwnedLogs
from gateway.hub import CANCELLED, Hub
from gateway.recording import Recording
from gateway.responses.followers import Followers
from gateway.responses.output import ended
from gateway.responses.records import Record, Records
from shared.connection import BUS_ERRORS, Bus
from shared.durable import DurableLogs, Owned
from shared.errors import BusUnavailable, Cancelled, Unreadable
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import Frame, Job, Withdrawn, encode
from shared.patience import Patience

log = get_logger(__name__)


class Keeper:
    EVERY_S = 0.5
    STORING = 4  # at a time
    STORED_WITHIN_S = 2.0  # after that a client is told the end all the same
    RESTORED_WITHIN_S = 2.0  # by all gateways, what Redis has lost

    def __init__(self, redis: Bus, keys: Keys, hub: Hub, records: Records, followers: Followers) -> None:
        self._redis = redis
        self._keys = keys
        self._hub = hub
        self._records = records
        self._followers = followers
        self._logs = DurableLogs(redis, keys)
        self._owned = OwnedLogs(redis, keys, hub.id)
        self._patience = Patience()
        self._patience.missed()
        self._subscriptions = 1  # of the hub, when all that is open was in Redis
        self._restored_at = float("-inf")
        self._open: dict[str, Recording] = {}
        self._to_store: asyncio.Queue[Recording | str] = asyncio.Queue()  # by its id: to be forgotten

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.STORING):
                tasks.create_task(self._store_ended(), name="store")
            tasks.create_task(self._look(), name="look")

    async def open(self, job: Job, response: dict[str, Any], items: list[dict[str, Any]]) -> Recording:
        """Stores what is needed to go on with the job elsewhere."""
        await self._records.create(job, response, items)
        return self._recording(Record(response, items, job=job))

    async def load(self, id: str) -> Record | None:
        """As it is in Redis, where what runs here is stored again if it was lost. Raises Unreadable, and BusUnavailable
        if another gateway may be about to do so."""
        record = await self._records.load(id)
        if record is None and (recording := self._open.get(id)) is not None:
            await self._restore(recording)
            record = await self._records.load(id)
        if record is None and self._may_be_lost():
            raise BusUnavailable("The message bus came back a moment ago; try again.", retry_after=1)
        return record

    def _may_be_lost(self) -> bool:
        if not self._hub.is_subscribed or self._hub.subscriptions != self._subscriptions:
            return True
        return time.monotonic() - self._restored_at < self.RESTORED_WITHIN_S

    def _recording(self, record: Record) -> Recording:
        recording = Recording(record.response, record.items, self._ended, self._moved, record.job)
        self._open[recording.id] = recording
        return recording

    def withdraw(self, id: str) -> None:
        """It could not be queued: its client is told so, and not that there is a response."""
        self._to_store.put_nowait(id)

    async def _take_back(self, id: str) -> None:
        """From then on nobody else owns it, and could store how it ends; what makes it is fenced off."""
        await self._logs.own(id, self._hub.id)
        await self._forget(id)

    async def _forget(self, id: str) -> None:
        self._open.pop(id, None)
        await self._records.forget(id, self._hub.id)

    # -- ends -----------------------------------------------------------------------------------------------------

    def _ended(self, recording: Recording) -> None:
        asyncio.get_running_loop().call_later(self.STORED_WITHIN_S, recording.release)
        self._to_store.put_nowait(recording)

    def _moved(self, recording: Recording) -> None:
        self._open.pop(recording.id, None)
        self._followers.follow(recording)

    async def _store_ended(self) -> None:
        while True:
            one = await self._to_store.get()
            try:
                await (self._take_back(one) if isinstance(one, str) else self._store(one))
            except BUS_ERRORS as error:
                log.warning("a response is not stored yet: %s", error)
                self._to_store.put_nowait(one)
                await asyncio.sleep(self.EVERY_S)

    async def _store(self, recording: Recording) -> None:
        """But not what failed before its client was told that there is a response, nor what was deleted meanwhile."""
        assert recording.end is not None
        if recording.end.code is not None and self._is_open(recording):
            recording.end = await self._owned.close(recording, recording.end)
        if not self._is_open(recording):
            pass
        elif recording.end.code is not None and not recording.pieces and not recording.response["background"]:
            await self._forget(recording.id)
        else:
            response = ended(recording.response, recording.pieces, recording.end)
            await self._records.finish(recording, self._hub.id, response)
            self._open.pop(recording.id, None)
        recording.release()

    def _is_open(self, recording: Recording) -> bool:
        return self._open.get(recording.id) is recording

    # -- cancelled by a client ------------------------------------------------------------------------------------

    def abandon(self, recording: Recording) -> None:
        """Its client left, and nobody else waits for it. Sync, and harmless after its end."""
        if recording.end is None and recording.is_owned and not recording.has_failed:
            self._hub.cancel([job_of(recording.id)])
            recording.fail(Cancelled(CANCELLED))

    async def cancel(self, record: Record) -> None:
        """Wherever it runs. Returns once that is stored."""
        recording = self._open.get(record.response["id"])
        if recording is None and record.job is not None:
            if await self._owner_cancels(record, record.job):
                return
            owned = await self._own(record.job)  # in the place of an owner that is gone
            recording = None if owned is None else self._continued(record, owned)
        if recording is not None:
            self._hub.cancel([job_of(recording.id)])
            recording.fail(Cancelled(CANCELLED))
            await recording.released.wait()
            if self._is_open(recording):  # nobody could store it so far: it is told why
                await self._store(recording)

    async def _owner_cancels(self, record: Record, job: Job) -> bool:
        """False if it does not answer: it is dead, perhaps."""
        owner = await self._logs.owner(job.request)
        withdrawn = encode(Frame([Withdrawn(job=job.id, attempt=job.attempt, worker="")]))
        if not owner or not await self._redis.line.ask("PUBLISH", self._keys.events(owner), withdrawn):
            return False
        followed = await self._followers.open(record, in_part=False)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.STORED_WITHIN_S):
                    await followed.released.wait()
        finally:
            self._followers.forget(followed)
        return followed.released.is_set()

    async def delete(self, record: Record) -> None:
        """And what makes it, if it runs."""
        id = record.response["id"]
        if record.end is not None:
            await self._forget(id)
            return
        try:
            await self.cancel(record)
            await self._take_back(id)
        except OutOfMemoryError:
            if id not in self._open:
                raise
            await self._forget(id)  # which makes room
            self.withdraw(id)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self.EVERY_S)
            try:
                await self._restore_lost()
                for gateway in await self._dead_owners():
                    await self._inherit(gateway)
            except BUS_ERRORS as error:
                log.debug("no look at the stored responses: %s", error)
                self._patience.missed()

    # -- lost with Redis ------------------------------------------------------------------------------------------

    async def _restore_lost(self) -> None:
        """After a lost connection: Redis may have come back without the responses that run here."""
        subscriptions = self._hub.subscriptions
        if subscriptions == self._subscriptions:
            return
        for recording in list(self._open.values()):
            await self._restore(recording)
        self._subscriptions = subscriptions
        self._restored_at = time.monotonic()

    async def _restore(self, recording: Recording) -> None:
        if await self._is_lost(recording.id) and self._is_open(recording):
            await self._records.restore(recording, self._hub.id)

    async def _is_lost(self, id: str) -> bool:
        """One that another gateway owns, and has no record of, was deleted there."""
        is_there, _ = await self._records.state(id)
        return not is_there and await self._logs.owner(id) in ("", self._hub.id)

    # -- adoption -------------------------------------------------------------------------------------------------

    async def _dead_owners(self) -> list[str]:
        owners = [
            owner.decode(errors="replace") for owner in await self._redis.line.ask("SMEMBERS", self._keys.owners())
        ]
        living = await self._redis.line.batch(("EXISTS", self._keys.gateway(owner)) for owner in owners)
        self._patience.looked()
        if not self._patience.is_over:
            return []
        return [owner for owner, lives in zip(owners, living, strict=True) if not lives and owner != self._hub.id]

    async def _inherit(self, gateway: str) -> None:
        for member in await self._redis.line.ask("SMEMBERS", self._keys.owned(gateway)):
            try:
                await self._adopt(member.decode(errors="replace"), gateway)
            except Unreadable as error:  # nor can any other gateway go on with it
                log.error("not adopted: %s", error)
            await self._redis.line.ask("SREM", self._keys.owned(gateway), member)
        await self._redis.line.ask("SREM", self._keys.owners(), gateway)

    async def _adopt(self, id: str, gateway: str) -> None:
        if id in self._open:  # at the last look, when it could not be noted down that it is done
            return
        record = await self._records.load(id)
        if record is None or record.job is None:
            return
        if (owned := await self._own(record.job, instead_of=gateway)) is None:  # another gateway was quicker
            return
        log.info("adopted response %s of gateway %s, which is gone", id, gateway)
        recording = self._continued(record, owned)
        if recording.end is None:
            self._hub.adopt(record.job, owned.attempt, recording)

    async def _own(self, job: Job, instead_of: str = "") -> Owned | None:
        """Noted down first: if this gateway dies in between, whoever inherits from it looks at the request too."""
        mine = self._keys.owned(self._hub.id)
        await self._redis.line.batch([("SADD", mine, job.request), ("SADD", self._keys.owners(), self._hub.id)])
        owned = await self._logs.own(job.request, self._hub.id, instead_of=instead_of)
        if owned is None:
            await self._redis.line.ask("SREM", mine, job.request)
        return owned

    def _continued(self, record: Record, owned: Owned) -> Recording:
        recording = self._recording(record)
        for piece in owned.log.made:
            recording.add(0, piece)
        if owned.log.end is not None:
            recording.ended(owned.log.end)
        return recording


def job_of(response: str) -> str:
    return f"{response}-0"
