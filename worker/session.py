"""One life of a worker on the bus, under one id: from registration until it drains or loses its lease."""

import asyncio
import enum
import time
from collections import deque
from collections.abc import Awaitable, Iterable
from contextlib import suppress

import msgspec

from registry.lease import LeaseKeeper, announce, bind_names, deregister, register
from shared import __version__
from shared.connection import BUS_ERRORS, Hearing, Redis, listen
from shared.errors import EngineFailed
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import Abort, WorkerInfo, decode_control, new_process_id
from shared.patience import Patience
from shared.queue import LEASE_RENEW_S, LOOP_HANGS_AFTER_S, SUSPECT_AFTER_CRASHES, Claim, Entry, JobQueue
from worker.engines.base import Engine, EngineInfo, EngineRequest, Output
from worker.inquiry import Inquiry
from worker.outbox import Outbox
from worker.pace import Pace
from worker.room import Room
from worker.running import RunningJob

log = get_logger(__name__)

BLOCK_MS = 500  # how long a read waits before it looks up again
BEAT_S = 0.2
CLOCKS_DIFFER_MS = 10_000  # gateways withdraw what is overdue; this is for what they left behind
READ_ENDS_S = BLOCK_MS / 1000 + 0.3  # after that a Redis that has not answered will not
GOODBYE_S = 1.0  # Redis may be away; then the lease runs out by itself


class Leaving(enum.Enum):
    """Why a session ends."""

    DRAIN = "drain"
    LEASE_LOST = "lease lost"


class Session:
    """Owns the running jobs of one worker id."""

    def __init__(
        self,
        *,
        redis: Redis,
        redis_url: str,
        keys: Keys,
        engine: Engine,
        engine_info: EngineInfo,
        names: list[str],
        adapter: int,
        room: Room,
        started_by: str = "",
        hang_timeout: float,
        drain_timeout: float,
    ) -> None:
        """adapter: as in EngineRequest."""
        self.id = new_process_id()
        self.model = names[0]
        self._redis = redis
        self._keys = keys
        self._engine = engine
        self._engine_info = engine_info
        self._names = names
        self._adapter = adapter
        self._room = room
        self._started_by = started_by
        self._hang_timeout = hang_timeout
        self._drain_timeout = drain_timeout
        self._queue = JobQueue(redis, keys)
        self._patience = Patience()
        self._patience.missed()  # a session may begin because Redis was away
        self._inquiry = Inquiry(redis, keys, self.model, self.id)
        self._pace = Pace(redis, keys, self.model, self.id, engine.step_ms)
        self._outbox = Outbox(redis, keys, self._settled, self._fenced)
        self._lease = LeaseKeeper(redis_url, keys, self.info, self._healthy, self._lease_lost_in_thread)
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, RunningJob] = {}  # by request id: what the engine has
        self._held: dict[Entry, RunningJob] = {}  # what is not settled yet
        self._suspects: deque[RunningJob] = deque()  # wait until nothing else runs
        self._waits = False  # for a job, in a room that is shared
        self._suspect = ""  # the last that was started, by its request id
        self._leaving: Leaving | None = None
        self.asked_to_drain = False
        self._reading: asyncio.Timeout | None = None  # the claim that is under way
        self._changed = asyncio.Event()  # a slot came free, or the session is to end
        self._beat_at = time.monotonic()
        self._started = time.time()
        self._tokens = 0
        self._tokens_per_s = 0.0

    # -- a session's life -----------------------------------------------------------------------------------------

    async def run(self) -> Leaving:
        """Until drained or the lease is lost. Registered means ready to claim: groups and control channel first; and
        before those the names, so that a worker that is refused leaves no streams behind."""
        await bind_names(self._redis, self._keys, self.info())
        await self._queue.create_groups(self.model, self.id)
        self._room.enter(self)
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                tasks.create_task(self._outbox.run(), name="outbox"),
                tasks.create_task(self._beat(), name="beat"),
                tasks.create_task(self._look_around(), name="look"),
            ]
            # An abort that is lost with a connection does no harm: its job's frames are answered with another.
            hearing = Hearing()
            control = listen(self._redis, self._keys.control(self.id), self._obey, hearing)
            helpers.append(tasks.create_task(control, name="control"))
            try:
                if await self._subscribes(hearing):
                    await self._serve()
            finally:
                self._room.leave(self)
                self._lease.stop()
                for helper in helpers:
                    helper.cancel()
        return self._leaving or Leaving.DRAIN

    async def _subscribes(self, hearing: Hearing) -> bool:
        """False if the session is to end before it does."""
        while not hearing.is_set() and self._leaving is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await hearing.wait()
        return self._leaving is None

    async def _serve(self) -> None:
        await register(self._redis, self._keys, self.info())
        self._lease.start()
        log.info("worker %s serves %s with %d slots", self.id, ", ".join(self._names), self._engine_info.slots)
        await self._pull()
        await self._leave()

    def leave(self, reason: Leaving) -> None:
        """Ask the session to end. A lost lease outranks a drain; whoever asks twice will not wait for streams."""
        if self._leaving is not None:
            self._drain_timeout = 0
        if reason is Leaving.DRAIN:
            self.asked_to_drain = True
        if self._leaving is not Leaving.LEASE_LOST:
            self._leaving = reason
        self._changed.set()
        if self._reading is not None:
            self._reading.reschedule(self._loop.time() + READ_ENDS_S)

    def info(self) -> WorkerInfo:
        engine, cache = self._engine_info, self._engine.cache()
        return WorkerInfo(
            id=self.id,
            model=self.model,
            names=self._names,
            fingerprint=engine.fingerprint,
            engine=engine.name,
            max_model_len=engine.max_model_len,
            resumable=engine.resumable,
            state="draining" if self._leaving else "ready",
            slots=engine.slots,
            running=len(self._running),
            tokens_per_s=round(self._tokens_per_s, 1),
            version=__version__,
            started=self._started,
            step_ms=round(self._pace.step_ms, 3),
            cache_usage=_rounded(cache.usage),
            cache_hit_rate=_rounded(cache.hit_rate),
            started_by=self._started_by,
        )

    def _healthy(self) -> bool:
        """Called by the lease thread: do the event loop and the engine's step thread move?"""
        loop_moves = time.monotonic() - self._beat_at < LOOP_HANGS_AFTER_S
        return loop_moves and self._engine.stalled_for() < self._hang_timeout

    def _lease_lost_in_thread(self) -> None:
        self._loop.call_soon_threadsafe(self.leave, Leaving.LEASE_LOST)

    async def _beat(self) -> None:
        """Shows the lease thread that the loop moves, and takes the token rate about once a second."""
        since, tokens = time.monotonic(), self._tokens
        while True:
            self._beat_at = now = time.monotonic()
            if now - since >= 1.0:
                self._tokens_per_s = (self._tokens - tokens) / (now - since)
                since, tokens = now, self._tokens
            await asyncio.sleep(BEAT_S)

    # -- claiming -------------------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        """Claims while there are free slots, until the session is to end."""
        reread = False
        while self._leaving is None:
            try:
                if reread:
                    # A read whose reply was lost has delivered its jobs all the same.
                    await self._claim(self._queue.claimed_before(self.model, self.id))
                    reread = False
                if self._suspects and self._room.is_free_for_suspect() and self._engine.accepts():
                    await self._start_suspect()
                elif self._free_slots():
                    await self._claim_new()
                else:
                    await self._change_within(BEAT_S)  # an engine that accepts again says nothing
            except BUS_ERRORS as error:
                log.warning("could not claim: %s", error)
                reread = True
                await asyncio.sleep(BEAT_S)

    async def _claim_new(self) -> None:
        """Waits for a job, if there is none."""
        handicap = self._pace.handicap_ms
        if not self._room.is_shared:
            await self._claim(self._queue.claim(self.model, self.id, self._room.free(), BLOCK_MS, handicap))
            return
        async with self._room.turn:
            free = self._free_slots()
            if self._leaving is not None or not free:
                return
            if await self._claim(self._queue.claim(self.model, self.id, free, 0, handicap)):
                self._room.claimed(self)
                return
            self._waits = not handicap
        if handicap:
            await self._change_within(BEAT_S / 4)
            return
        try:
            if self._leaving is None:
                await self._claim(self._queue.next(self.model, self.id, BLOCK_MS))
        finally:
            self._waits = False
            self._room.changed()

    async def _claim(self, claims: Awaitable[list[Claim]]) -> bool:
        """Whether there are any. Raises TimeoutError if the session is to end and Redis does not answer."""
        async with asyncio.timeout(None) as self._reading:
            try:
                found = await claims
                await self._start(found)
                return bool(found)
            finally:
                self._reading = None

    def _free_slots(self) -> int:
        return self._room.free() if self._engine.accepts() else 0

    @property
    def occupied(self) -> int:
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waits

    @property
    def has_suspect(self) -> bool:
        return bool(self._suspects) or self._suspect in self._running

    def wake(self) -> None:
        self._changed.set()

    async def _start(self, claims: list[Claim]) -> None:
        new = [RunningJob(job, entry, self.id) for entry, job in claims if entry not in self._held]
        if not new:
            return
        # Should this fail, they are not held yet, and so are read again.
        found = await self._inquiry.into(new)
        if not found.has_lease:
            # Taken for lost with whatever else is pending here; its gateway finds it there. Run or settled here, it
            # would be done twice, or be missed for seconds.
            self.leave(Leaving.LEASE_LOST)
            return
        self._held |= {running.entry: running for running in new}
        for running in new:
            if running.request_id in found.orphans and self._patience.is_over:
                self._outbox.settle_orphan(running)
            elif running.request_id in found.void or running.job.deadline + CLOCKS_DIFFER_MS < time.time() * 1000:
                self._outbox.settle_unrun(running)
            elif _is_suspect(running):
                self._suspects.append(running)
                self._room.changed()
            else:
                self._outbox.changed(running)  # publishes Claimed
                self._submit(running)

    async def _start_suspect(self) -> None:
        """Only now its claim is published, and first: what kills this worker while it waits must not be laid to it,
        and what kills this worker from here on is nothing else."""
        running = self._suspects.popleft()
        self._suspect = running.request_id
        self._running[running.request_id] = running
        self._outbox.changed(running)
        await self._outbox.flushed()
        if running.request_id in self._running:  # not aborted meanwhile
            self._submit(running)

    def _submit(self, running: RunningJob) -> None:
        job = running.job
        assert isinstance(job.payload, dict)
        self._running[running.request_id] = running
        self._engine.submit(
            EngineRequest(
                running.request_id, job.kind, job.payload, job.sampling, job.choice, job.resume, self._adapter
            )
        )

    # -- progress -------------------------------------------------------------------------------------------------

    def deliver(self, outputs: list[Output]) -> None:
        """Called by the engine once per step. Outputs of what was aborted meanwhile are dropped."""
        changed = []
        for output in outputs:
            running = self._running.get(output.id)
            if running is None:
                continue
            try:
                running.add(output)
            except Exception as error:  # of this output alone: those of others come with it
                log.exception("what request %s was answered cannot be taken", output.id)
                running.error = EngineFailed(f"The engine failed: {error}")
                self._engine.abort(output.id)
            self._tokens += len(output.token_ids)
            if running.ended:
                self._free(running)
            changed.append(running)
        if changed:
            self._outbox.changed(*changed)

    def _free(self, running: RunningJob) -> None:
        self._running.pop(running.request_id, None)
        self._room.changed()

    def _settled(self, running: RunningJob) -> None:
        self._held.pop(running.entry, None)

    def _fenced(self, running: RunningJob) -> None:
        """Of a durable job: another attempt has taken it over, or its log is damaged. Its owner, if it lives, goes on
        from what it has."""
        self._stop_running(running)
        self._release([running])

    def _stop_running(self, running: RunningJob) -> None:
        self._engine.abort(running.request_id)
        if running in self._suspects:
            self._suspects.remove(running)
        self._free(running)

    async def _look_around(self) -> None:
        """How fast the others are, and no computing for nobody: jobs whose gateway is gone. Its lease tells; that
        somebody hears what is published does not, since anybody may listen, and one that only subscribes anew hears
        nothing for a moment."""
        while True:
            await asyncio.sleep(LEASE_RENEW_S)
            try:
                await self._pace.look()
                gateways = {running.job.gateway for running in self._held.values() if not running.job.is_durable}
                gone = await self._inquiry.without_lease(gateways)
            except BUS_ERRORS as error:
                log.debug("no look at the gateways: %s", error)
                self._patience.missed()
                continue
            self._patience.looked()
            if not self._patience.is_over:
                continue
            orphans = [
                one
                for one in self._held.values()
                if one.job.gateway in gone and not one.job.is_durable and not one.ended
            ]
            for running in orphans:
                self._stop_running(running)
                self._outbox.settle_orphan(running)
            if orphans:
                log.info("dropped %d jobs of gateways that are gone", len(orphans))

    # -- control --------------------------------------------------------------------------------------------------

    def _obey(self, message: bytes) -> None:
        try:
            command = decode_control(message)
        except msgspec.MsgspecError as error:
            log.error("not a command: %s", error)
            return
        if isinstance(command, Abort):
            self._abort(command)
        else:
            self.leave(Leaving.DRAIN)

    def _abort(self, command: Abort) -> None:
        """Its gateway has settled the entry, or will."""
        for running in list(self._held.values()):
            if running.job.id == command.job and running.job.attempt == command.attempt and not running.ended:
                self._stop_running(running)
                self._outbox.forget(running)
                self._settled(running)

    # -- leaving --------------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        if self._leaving is Leaving.DRAIN:
            await self._drain()
        for running in list(self._running.values()):
            self._engine.abort(running.request_id)
        self._running.clear()

    async def _drain(self) -> None:
        """Hand back what has not started, let streams end within the drain timeout, hand over the rest, say goodbye."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._hand_back_unstarted()
            await self._let_streams_end()
            async with asyncio.timeout(GOODBYE_S):
                await self._say_goodbye()
        except BUS_ERRORS as error:
            log.warning("left without a goodbye: %s", error)

    async def _hand_back_unstarted(self) -> None:
        # Nothing is addressed to a worker that says it is leaving; so what is claimed here is all.
        await announce(self._redis, self._keys, self.info())
        inbox = await self._queue.claim_inbox(self.model, self.id)
        for entry, job in [*inbox, *await self._queue.claimed_before(self.model, self.id)]:
            if entry not in self._held:
                self._held[entry] = RunningJob(job, entry, self.id)
        self._release(running for running in self._held.values() if running.request_id not in self._running)
        self._suspects.clear()

    async def _let_streams_end(self) -> None:
        since = time.monotonic()
        while self._running and self._leaving is Leaving.DRAIN:
            left = since + self._drain_timeout - time.monotonic()
            if left <= 0:
                return
            await self._change_within(left)

    async def _change_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    async def _say_goodbye(self) -> None:
        for running in self._running.values():
            self._engine.abort(running.request_id)
        self._release(self._running.values())
        self._running.clear()
        await self._outbox.flushed()
        await asyncio.to_thread(self._lease.join)
        clean = await self._queue.leave(self.model, self.id)
        await deregister(self._redis, self._keys, self.info(), keep_index=not clean)

    def _release(self, jobs: Iterable[RunningJob]) -> None:
        for running in jobs:
            if not running.ended:
                running.released = True
                self._outbox.changed(running)


def _is_suspect(running: RunningJob) -> bool:
    return running.job.crashes >= SUSPECT_AFTER_CRASHES


def _rounded(part: float | None) -> float | None:
    return None if part is None else round(part, 3)
