"""Cleans up after the dead: workers' pending entries, consumers, inboxes and index rows; gateways' waiting jobs.
One gateway at a time does it."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from registry.directory import read_records
from shared.connection import BUS_ERRORS, Redis
from shared.keys import GROUP, Keys
from shared.logging import get_logger
from shared.messages import Job, decode_job
from shared.queue import CANCELLED_SLACK_MS, Entry, script, settle

log = get_logger(__name__)


class Janitor:
    """Leaves alone what belongs to a gateway that lives: that gateway re-issues it, and then it is gone from here."""

    EVERY_S = 2.0
    BATCH = 100
    WAITED_MS = 5_000  # only jobs that wait so long are looked at

    def __init__(self, redis: Redis, keys: Keys, owner: str) -> None:
        self._redis = redis
        self._keys = keys
        self._owner = owner
        self._forget = script("forget")
        self._seen_up_to: dict[str, str] = {}  # stream -> the last entry of the last look at what waits

    async def run(self) -> None:
        """Until cancelled. Whoever gets the key sweeps; a sweep by two would be harmless, only wasted."""
        while True:
            await asyncio.sleep(self.EVERY_S)
            try:
                held = await self._redis.set(self._keys.janitor(), self._owner, nx=True, px=int(self.EVERY_S * 900))
                if held:
                    await self.sweep()
            except BUS_ERRORS as error:
                log.debug("no sweep: %s", error)

    async def sweep(self) -> None:
        records = await read_records(self._redis, self._keys)
        for model in {record.model for record in records.values()}:
            await self._sweep_model(model)
            for stream in self._keys.job_streams(model):
                await self._sweep_waiting(stream)

    async def _sweep_model(self, model: str) -> None:
        known = {id.decode(errors="replace") for id in await self._redis.zrange(self._keys.workers(model), 0, -1)}
        streams = self._keys.job_streams(model)
        consumers = {stream: await self._consumers(stream) for stream in streams}
        workers = list(known.union(*consumers.values()))
        lives = await self._redis.line.batch(("EXISTS", self._keys.worker(model, worker)) for worker in workers)
        dead = [worker for worker, is_there in zip(workers, lives, strict=True) if not is_there]
        for worker in dead:
            clean = [await self._forget_consumer(stream, worker) for stream in streams if worker in consumers[stream]]
            clean.append(await self._remove_inbox(self._keys.inbox(model, worker)))
            if all(clean):
                await self._redis.zrem(self._keys.workers(model), worker)
                log.info("cleaned up after worker %s", worker)

    async def _consumers(self, stream: str) -> set[str]:
        try:
            return {row["name"].decode(errors="replace") for row in await self._redis.xinfo_consumers(stream, GROUP)}
        except ResponseError:  # no such stream or group
            return set()

    async def _forget_consumer(self, stream: str, worker: str) -> bool:
        pending = await self._redis.xpending_range(stream, GROUP, "-", "+", self.BATCH, consumername=worker)
        async with self._redis.pipeline(transaction=False) as pipe:
            for row in pending:
                pipe.xrange(stream, row["message_id"], row["message_id"], 1)
            found = await pipe.execute() if pending else []
        await self._settle_orphans(
            stream, [rows[0] if rows else (row["message_id"], {}) for row, rows in zip(pending, found, strict=True)]
        )
        return bool(await self._redis.line.run(self._forget, [stream], [GROUP, worker]))

    async def _remove_inbox(self, inbox: str) -> bool:
        """Its entries, delivered or not, go with their gateways; what a living one owns it will re-issue."""
        await self._settle_orphans(inbox, await self._redis.xrange(inbox, "-", "+", self.BATCH))
        if await self._redis.xlen(inbox):
            return False
        await self._redis.delete(inbox)
        return True

    async def _sweep_waiting(self, stream: str) -> None:
        """A part of what waits, another one each time: while no worker is there, nobody else would find out that
        nobody waits for it."""
        after = self._seen_up_to.get(stream, "")
        until = int(time.time() * 1000) - self.WAITED_MS
        rows = await self._redis.xrange(stream, f"({after}" if after else "-", until, self.BATCH)
        self._seen_up_to[stream] = rows[-1][0].decode() if len(rows) == self.BATCH else ""
        await self._settle_orphans(stream, rows)

    async def _settle_orphans(self, stream: str, rows: list[Any]) -> None:
        """Of these entries, (id, fields), those that nobody waits for: their gateway is gone, with what lies aside for
        them, or it has withdrawn them without knowing where they were (its enqueue was never answered)."""
        jobs = {id.decode(): _job_in(fields) for id, fields in rows}
        owned, withdrawn = await self._look_up([job for job in jobs.values() if job])
        unwanted = {id: job for id, job in jobs.items() if not job or job.id not in owned or job.id in withdrawn}
        if not unwanted:
            return
        orphaned = [job for job in unwanted.values() if job and job.id not in owned and isinstance(job.payload, int)]
        payloads = [("UNLINK", self._keys.payload(job.request)) for job in orphaned]
        await self._redis.line.batch([*settle(Entry(stream, id) for id in unwanted), *payloads])
        log.info("settled %d jobs that nobody waits for in %s", len(unwanted), stream)

    async def _look_up(self, jobs: Sequence[Job]) -> tuple[set[str], set[str]]:
        """Ids of those whose gateway lives, and of those that are cancelled or long overdue."""
        if not jobs:
            return set(), set()
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.exists(self._keys.gateway(job.gateway))
                pipe.exists(self._keys.cancelled(job.id))
            replies = await pipe.execute()
        overdue = int(time.time() * 1000) - CANCELLED_SLACK_MS
        owned = {job.id for job, lives in zip(jobs, replies[::2], strict=True) if lives}
        cancelled = zip(jobs, replies[1::2], strict=True)
        return owned, {job.id for job, is_cancelled in cancelled if is_cancelled or job.deadline < overdue}


def _job_in(fields: Any) -> Job | None:
    try:
        return decode_job((fields or {}).get(b"job", b""))
    except msgspec.MsgspecError:
        return None
