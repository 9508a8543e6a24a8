"""Looks twice a second for what no event tells: dead workers, entries that are gone, stalls. PROTOCOL, failures."""

import asyncio
import time
from collections.abc import Iterable

from gateway.hub import Hub
from gateway.inflight import InFlight
from gateway.metrics import Metrics
from registry.directory import Directory
from shared.connection import BUS_ERRORS, Redis
from shared.errors import NoWorkers
from shared.keys import Keys
from shared.logging import get_logger
from shared.queue import LEASE_MS, SUSPECT_AFTER_CRASHES, Entry, JobQueue

log = get_logger(__name__)

Holder = tuple[str, str]  # model, worker


class Watch:
    EVERY_S = 0.5
    SILENT_S = 2.0  # after which a claimed job's entry is looked up
    QUEUED_SILENT_S = 5.0  # likewise for one that waits
    LOOKUPS = 500  # entries at most in one tick
    LOOK_GAP_S = 1.5  # more between two looks means that Redis was away
    AMNESTY_S = 10.0  # after that a lost worker is no crash: it may only have lost its lease

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        hub: Hub,
        directory: Directory,
        metrics: Metrics,
        stall_timeout: float,
        no_worker_timeout: float,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._hub = hub
        self._directory = directory
        self._metrics = metrics
        self._stall_timeout = stall_timeout
        self._no_worker_timeout = no_worker_timeout
        self._queue = JobQueue(redis, keys)
        self._looked_at = time.monotonic()
        self._judge_after = self._blame_after = 0.0
        self._alone_since: dict[str, float] = {}  # model -> since when nobody serves it

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.EVERY_S)
            self._end_waits()
            try:
                await self._tick()
            except BUS_ERRORS as error:
                log.debug("no look at the leases: %s", error)
                self._looked_at = float("-inf")

    def _may_judge(self) -> bool:
        """Not for a lease after Redis was away, be it without an error (stopped, or behind a dead link): leases
        may have run out then only because nobody could renew them."""
        now = time.monotonic()
        if now - self._looked_at > self.LOOK_GAP_S:
            self._judge_after = now + LEASE_MS / 1000
            self._blame_after = now + self.AMNESTY_S
        self._looked_at = now
        return now >= self._judge_after

    async def _tick(self) -> None:
        inflights = list(self._hub)
        if not inflights:
            self._looked_at = time.monotonic()
            return
        held = {(inflight.job.model, inflight.holder) for inflight in inflights if inflight.holder}
        # A claimer may have died before its word came through: the pending list knows it.
        silent = set()
        for model in {inflight.job.model for inflight in inflights if not inflight.worker}:
            silent |= {(model, worker) for worker in await self._queue.consumers(model)}
        lost = await self._without_lease(held | silent)
        if not self._may_judge():
            return
        for inflight in inflights:
            if (inflight.job.model, inflight.holder) in lost:
                self._hub.reissue(inflight, "worker_lost", crashed=inflight.worker is not None and self._blames())
        for model, worker in lost & silent:
            await self._reissue_unannounced(inflights, model, worker)
        for model, _ in lost & held:
            self._metrics.lease_expired.labels(model).inc()
        await self._reissue_missing(inflights)

    def _blames(self) -> bool:
        return time.monotonic() >= self._blame_after

    async def _without_lease(self, holders: set[Holder]) -> set[Holder]:
        """Asking for the key itself expires it; keyspace events come late."""
        if not holders:
            return set()
        asked, started = list(holders), time.perf_counter()
        async with self._redis.pipeline(transaction=False) as pipe:
            for model, worker in asked:
                pipe.exists(self._keys.worker(model, worker))
            replies = await pipe.execute()
        self._metrics.bus_roundtrip.observe(time.perf_counter() - started)
        return {holder for holder, exists in zip(asked, replies, strict=True) if not exists}

    async def _reissue_unannounced(self, inflights: list[InFlight], model: str, worker: str) -> None:
        delivered = await self._queue.pending_of(model, worker)
        for inflight in inflights:
            unannounced = inflight.worker is None and not inflight.replaced  # else one crash would count twice
            if unannounced and inflight.entry and Entry(*inflight.entry[:2]) in delivered:
                # A suspect is announced before it starts: this one only waited there.
                crashed = inflight.job.crashes < SUSPECT_AFTER_CRASHES and self._blames()
                self._hub.reissue(inflight, "worker_lost", crashed=crashed)

    async def _reissue_missing(self, inflights: Iterable[InFlight]) -> None:
        """An entry that is gone without an end: its end was lost, or Redis came back without it. Seen at two looks, so
        that an end that is just arriving is not taken for lost."""
        suspects = [inflight for inflight in inflights if self._is_silent(inflight)][: self.LOOKUPS]
        if not suspects:
            return
        missing = await self._queue.missing([inflight.entry for inflight in suspects if inflight.entry])
        for inflight in suspects:
            if inflight.entry not in missing or not self._is_silent(inflight):
                inflight.entry_missing = False
            elif inflight.entry_missing:
                self._hub.reissue(inflight, "entry_lost", crashed=False)
            else:
                inflight.entry_missing = True

    def _is_silent(self, inflight: InFlight) -> bool:
        limit = self.SILENT_S if inflight.worker else self.QUEUED_SILENT_S
        return not inflight.closed and inflight.entry is not None and time.monotonic() - inflight.last_at > limit

    def _end_waits(self) -> None:
        now = time.monotonic()
        waiting = {inflight.job.model for inflight in self._hub if not inflight.worker}
        alone = {model for model in waiting if not self._directory.snapshot.workers.get(model)}
        self._alone_since = {model: self._alone_since.get(model, now) for model in alone if now >= self._judge_after}
        for inflight in self._hub:
            if inflight.worker and now - inflight.last_at > self._stall_timeout:
                self._hub.reissue(inflight, "stall", crashed=True)
            elif not inflight.worker and now - self._alone_since.get(inflight.job.model, now) > self._no_worker_timeout:
                self._hub.fail(inflight, NoWorkers(f"No worker is left for '{inflight.job.model}'.", retry_after=10))
