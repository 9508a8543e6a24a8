"""Cleans up after dead workers: their pending entries, consumers, inboxes and index rows. One gateway at a time."""

import asyncio
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from registry.directory import read_records
from shared.connection import BUS_ERRORS, Redis
from shared.keys import GROUP, Keys
from shared.logging import get_logger
from shared.messages import decode_job
from shared.queue import Entry, script, settle

log = get_logger(__name__)


class Janitor:
    """Leaves alone what belongs to a gateway that lives: that gateway re-issues it, and then it is gone from here."""

    EVERY_S = 2.0
    BATCH = 100

    def __init__(self, redis: Redis, keys: Keys, owner: str) -> None:
        self._redis = redis
        self._keys = keys
        self._owner = owner
        self._forget = redis.register_script(script("forget"))

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

    async def _sweep_model(self, model: str) -> None:
        known = {id.decode(errors="replace") for id in await self._redis.zrange(self._keys.workers(model), 0, -1)}
        streams = self._keys.job_streams(model)
        consumers = {stream: await self._consumers(stream) for stream in streams}
        dead = [id for id in known.union(*consumers.values()) if not await self._lives(model, id)]
        for worker in dead:
            clean = [await self._forget_consumer(stream, worker) for stream in streams if worker in consumers[stream]]
            clean.append(await self._remove_inbox(self._keys.inbox(model, worker)))
            if all(clean):
                await self._redis.zrem(self._keys.workers(model), worker)
                log.info("cleaned up after worker %s", worker)

    async def _lives(self, model: str, worker: str) -> bool:
        return bool(await self._redis.exists(self._keys.worker(model, worker)))

    async def _consumers(self, stream: str) -> set[str]:
        try:
            return {row["name"].decode(errors="replace") for row in await self._redis.xinfo_consumers(stream, GROUP)}
        except ResponseError:  # no such stream or group
            return set()

    async def _forget_consumer(self, stream: str, worker: str) -> bool:
        rows = await self._redis.xpending_range(stream, GROUP, "-", "+", self.BATCH, consumername=worker)
        for row in rows:
            await self._settle_if_orphaned(stream, row["message_id"])
        return bool(await self._forget(keys=[stream], args=[GROUP, worker]))

    async def _remove_inbox(self, inbox: str) -> bool:
        """Its entries, delivered or not, go with their gateways; what a living one owns it will re-issue."""
        for id, _ in await self._redis.xrange(inbox, "-", "+", self.BATCH):
            await self._settle_if_orphaned(inbox, id)
        if await self._redis.xlen(inbox):
            return False
        await self._redis.delete(inbox)
        return True

    async def _settle_if_orphaned(self, stream: str, id: bytes) -> None:
        rows: list[Any] = await self._redis.xrange(stream, id, id, 1)
        if rows and await self._has_owner(rows[0][1].get(b"job")):
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            settle(pipe, Entry(stream, id.decode()))
            await pipe.execute()

    async def _has_owner(self, blob: bytes | None) -> bool:
        try:
            return bool(await self._redis.exists(self._keys.gateway(decode_job(blob or b"").gateway)))
        except msgspec.MsgspecError:
            return False
