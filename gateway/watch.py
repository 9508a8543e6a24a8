"""Looks four times a second for what no event tells: dead workers, lost entries, stalls. PROTOCOL, failures."""

import asyncio
import time
from collections.abc import Iterable

from gateway.demand import Demand
from gateway.hub import Hub
from gateway.inflight import InFlight
from gateway.metrics import Metrics
from registry.directory import Directory
from shared.connection import BUS_ERRORS, Redis
from shared.keys import Keys
from shared.logging import get_logger
from shared.patience import Patience
from shared.queue import SUSPECT_AFTER_CRASHES, Entry, JobQueue

log = get_logger(__name__)

Holder = tuple[str, str]  # model, worker


class Watch:
    EVERY_S = 0.25
    UNHEARD_S = 0.7  # without ears, a worker that had some is dead; one that only lost them has them back by then
    SILENT_S = 2.0  # after which a claimed job's entry is looked up
    QUEUED_SILENT_S = 5.0  # likewise for one that waits
    LOOKUPS = 500  # entries at most in one tick
    AMNESTY_S = 1.0  # who claimed before, or within this of its return, may only have lost a lease: that is no crash

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        hub: Hub,
        directory: Directory,
        demand: Demand,
        metrics: Metrics,
        stall_timeout: float,
        no_worker_timeout: float,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._hub = hub
        self._directory = directory
        self._demand = demand
        self._metrics = metrics
        self._stall_timeout = stall_timeout
        self._no_worker_timeout = no_worker_timeout
        self._queue = JobQueue(redis, keys)
        self._patience = Patience()
        self._alone_since: dict[str, float] = {}  # model -> since when nobody serves it
        self._heard_at: dict[Holder, float] = {}  # when workers were last seen to listen
        self._subscriptions = 0  # of the hub, at the last look

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.EVERY_S)
            self._end_waits()
            self._hub.write_traces()
            try:
                await self._tick()
            except BUS_ERRORS as error:
                log.debug("no look at the leases: %s", error)
                self._patience.missed()

    async def _tick(self) -> None:
        inflights = list(self._hub)
        listed = {(model, info.id) for model, workers in self._directory.snapshot.workers.items() for info in workers}
        held = {(inflight.job.model, inflight.holder) for inflight in inflights if inflight.holder}
        # A claimer may have died before its word came through: the pending list knows it.
        silent = set()
        for model in {inflight.job.model for inflight in inflights if not inflight.worker}:
            silent |= {(model, worker) for worker in await self._queue.consumers(model)}
        without_lease, deaf = await self._look_at(listed | held | silent)
        self._patience.looked()
        if not self._patience.is_over:
            self._heard_at.clear()
            return
        if deaf:
            await self._take_leases(deaf)
        lost = without_lease | deaf
        for inflight in inflights:
            if inflight.worker and (inflight.job.model, inflight.worker) in lost:
                self._hub.reissue(inflight, "worker_lost", crashed=self._blames(inflight))
        for model, worker in lost & (held | silent):
            await self._reissue_unannounced(inflights, model, worker)
        for model, _ in lost & held:
            self._metrics.lease_expired.labels(model).inc()
        await self._reissue_missing(inflights)

    def _blames(self, inflight: InFlight) -> bool:
        return (inflight.claimed_at or inflight.last_at) > self._patience.back_at + self.AMNESTY_S

    async def _look_at(self, holders: set[Holder]) -> tuple[set[Holder], set[Holder]]:
        """Those without a lease, and those who do not listen any more. Asking for the key itself expires it; keyspace
        events come late."""
        if not holders:
            await self._redis.ping()
            return set(), set()
        asked, started = list(holders), time.perf_counter()
        channels = [self._keys.control(worker) for _, worker in asked]
        *exist, listeners = await self._redis.line.batch(
            [*(("EXISTS", self._keys.worker(*holder)) for holder in asked), ("PUBSUB", "NUMSUB", *channels)]
        )
        self._metrics.bus_roundtrip.observe(time.perf_counter() - started)
        without_lease = {holder for holder, exists in zip(asked, exist, strict=True) if not exists}
        counts = dict(zip(asked, listeners[1::2], strict=True))
        return without_lease, self._deaf(counts)

    def _deaf(self, listeners: dict[Holder, int]) -> set[Holder]:
        """Only those that were heard of before, since in a cluster the others listen at another node; and not when this
        gateway lost its own ears too, with everybody's."""
        now = time.monotonic()
        if self._subscriptions != self._hub.subscriptions:
            self._subscriptions = self._hub.subscriptions
            self._heard_at.clear()
        heard = {holder: now if count else self._heard_at.get(holder) for holder, count in listeners.items()}
        self._heard_at = {holder: at for holder, at in heard.items() if at is not None}
        return {holder for holder, at in self._heard_at.items() if now - at > self.UNHEARD_S}

    async def _take_leases(self, workers: set[Holder]) -> None:
        """A process that is killed loses its connections at once, and its lease only after 2.5 s. One that lives all
        the same comes back under a new id, as after any lost lease."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for model, worker in workers:
                log.info("worker %s does not listen any more", worker)
                pipe.delete(self._keys.worker(model, worker))
            await pipe.execute()

    async def _reissue_unannounced(self, inflights: list[InFlight], model: str, worker: str) -> None:
        """What a dead worker had claimed without a word of it coming through, and what lay in its inbox."""
        waiting = [inflight for inflight in inflights if inflight.job.model == model and inflight.awaits_claim]
        delivered = await self._queue.pending_of(model, worker) if waiting else set()
        for inflight in waiting:
            if not inflight.awaits_claim or inflight.entry is None:
                continue
            if Entry(*inflight.entry[:2]) in delivered:
                # A suspect is announced before it starts: this one only waited there.
                crashed = inflight.job.crashes < SUSPECT_AFTER_CRASHES and self._blames(inflight)
                self._hub.reissue(inflight, "worker_lost", crashed=crashed, worker=worker)
            elif inflight.entry.addressed_to == worker:
                self._hub.reissue(inflight, "worker_lost", crashed=False)

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
        for model in alone:
            self._demand.note(model)
        self._alone_since = {model: self._alone_since.get(model, now) for model in alone if self._patience.is_over}
        for inflight in self._hub:
            if inflight.worker and now - inflight.last_at > self._stall_timeout:
                self._hub.reissue(inflight, "stall", crashed=True)
            elif not inflight.worker and now - self._alone_since.get(inflight.job.model, now) > self._no_worker_timeout:
                model = inflight.job.model
                self._hub.fail(
                    inflight, self._directory.unavailable(model, f"No worker is left for '{model}'.", retry_after=10)
                )
