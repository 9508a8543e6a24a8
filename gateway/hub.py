"""The hub: owns every job that this gateway answers for, from acceptance to its last event.

One subscription for the gateway's whole life. Frames come in and go to mailboxes; what is not of the current attempt
is fenced off; what a worker could not finish is re-issued with the tokens that are already here.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from gateway.admission import Admission
from gateway.asked import OVERDUE, Asked
from gateway.durable import OwnedLogs
from gateway.errands import Errands
from gateway.inflight import InFlight, Mailbox, Siblings
from gateway.metrics import Metrics
from gateway.recording import Recording
from gateway.traces import Traces
from shared.connection import BUS_ERRORS, Hearing, Redis, listen
from shared.errors import Cancelled, DeadlineExceeded, QueueFull, ShuttingDown, TokenbusError, WorkerLost
from shared.keys import CLASSES, Keys
from shared.logging import get_logger
from shared.messages import Claimed, Delta, Event, Failed, Finished, Job, Released, Withdrawn, decode_frame
from shared.queue import (
    BURIED_PAYLOAD_TTL_MS,
    PAYLOAD_TTL_MS,
    SUSPECT_AFTER_CRASHES,
    DispatchMethod,
    Entry,
    JobQueue,
    set_aside,
)

log = get_logger(__name__)

CANCELLED = "The response was cancelled."
STUCK = "The worker was lost and its engine cannot continue a reply."


class Hub:
    """All methods but `submit` and the tasks are synchronous: they run between two awaits, so no lock is needed."""

    def __init__(
        self, redis: Redis, keys: Keys, gateway: str, metrics: Metrics, max_queue: int, method: DispatchMethod
    ) -> None:
        self.id = gateway
        self._redis = redis
        self._keys = keys
        self._metrics = metrics
        self._method = method
        self._queue = JobQueue(redis, keys)
        self._owned = OwnedLogs(redis, keys, gateway)
        self._errands = Errands(redis, keys)
        self._admission = Admission(max_queue)
        self._traces = Traces(self._errands)
        self._jobs: dict[str, InFlight] = {}
        self._to_reissue: asyncio.Queue[tuple[InFlight, int]] = asyncio.Queue()
        self._hearing = Hearing()

    # -- tasks ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            # What was published while it did not hear shows as a gap in seq, or as an entry that is gone (Watch).
            events = listen(self._redis, self._keys.events(self.id), self.on_frame, self._hearing)
            tasks.create_task(events, name="events")
            tasks.create_task(self._keep_payloads(), name="payloads")
            tasks.create_task(self._reissue_queued(), name="reissue")
            tasks.create_task(self._errands.run(), name="errands")

    async def ready(self) -> None:
        await self._hearing.wait()

    @property
    def is_subscribed(self) -> bool:
        return self._hearing.is_set()

    @property
    def subscriptions(self) -> int:
        """How often this gateway has subscribed so far: more than once means that connections were lost."""
        return self._hearing.began

    async def close(self) -> None:
        """Say goodbye: what is still open fails, what was promised to Redis is sent."""
        self.fail_all(ShuttingDown("The server is shutting down; try again."))
        if not self.is_subscribed:  # nobody to say it to: Redis is away, or refused us
            return
        try:
            async with asyncio.timeout(2):
                await self._errands.flush()
                await self._redis.delete(self._keys.gateway(self.id))
        except BUS_ERRORS as error:
            log.warning("left without a goodbye: %s", error)

    async def _keep_payloads(self) -> None:
        while True:
            await asyncio.sleep(PAYLOAD_TTL_MS / 3000)
            for request in {one.job.request for one in self if one.siblings.payloads is not None}:
                self._errands.keep_payload(request, PAYLOAD_TTL_MS)

    async def _reissue_queued(self) -> None:
        while True:
            inflight, attempt = await self._to_reissue.get()
            if inflight.closed or inflight.job.attempt != attempt:
                continue
            try:
                if inflight.job.is_durable and not await self._is_still_to_do(inflight):
                    continue
                await self._put_aside(inflight)
                entry = await self._queue.reissue(inflight.entry or Entry("", ""), inflight.job)
            except BUS_ERRORS as error:
                # Whether it was appended is not known: should it turn up, its attempt is old.
                log.warning("re-issue of %s waits: %s", inflight.job.id, error)
                await asyncio.sleep(0.2)
                self._next_attempt(inflight, crashed=False)
                continue
            self._placed(inflight, entry)

    async def _is_still_to_do(self, inflight: InFlight) -> bool:
        """Of a durable job, before it is issued again."""
        recording = inflight.mailbox
        assert isinstance(recording, Recording)
        before = len(recording.pieces)
        found = await self._owned.fence(inflight.job, recording)
        if inflight.closed:
            return False
        if found is None:
            self._moved(inflight)
            return False
        for piece in recording.pieces[before:]:
            inflight.took(piece)
        if found.end is not None:
            self._close(inflight)
            recording.ended(found.end)
            return False
        inflight.job = msgspec.structs.replace(inflight.job, logged=len(recording.pieces), resume=inflight.resume)
        return True

    # -- a request's life -----------------------------------------------------------------------------------------

    async def submit(self, jobs: Sequence[Job], mailbox: Mailbox, asked: Asked, slots: int) -> None:
        """Enqueue all jobs of one request, for a model with so many slots. The mailbox listens before the first job can
        be claimed. Raises QueueFull with its Retry-After, or what the bus raises; then nothing is left behind."""
        jobs, payloads = set_aside(jobs)
        siblings = Siblings(jobs[0].request, len(jobs), len(jobs), payloads)
        opened = [InFlight(job, index, mailbox, siblings) for index, job in enumerate(jobs)]
        self._end_in_time(opened)
        for inflight in opened:
            inflight.mark("accepted")
            self._jobs[inflight.job.id] = inflight
        model = jobs[0].model
        room, came_back = self._admission.room(model, asked.known_by)
        try:
            await self._put_aside(opened[0])
            entries = await self._queue.enqueue(jobs, room, self._method)
        except QueueFull as error:
            for inflight in opened:  # nothing of them is in Redis
                inflight.untold = False
                if not inflight.closed:  # overdue meanwhile
                    self._close(inflight)
            error.retry_after = self._admission.refuse(model, asked.body, len(jobs), slots, came_back=came_back)
            raise
        except BaseException:
            self.cancel((job.id for job in jobs), "it could not be queued")  # whether they were appended is not known
            if payloads is not None:  # written perhaps only after the deadline has taken it away
                self._errands.forget_payload(siblings.request)
            raise
        if asked.own_id is not None:
            self._errands.name_request(asked.own_id, jobs[0].request, jobs[0].deadline)
        for inflight, entry in zip(opened, entries, strict=True):
            if not inflight.closed and inflight.entry is None:
                inflight.mark("queued")
            self._placed(inflight, entry)

    def adopt(self, job: Job, attempt: int, recording: Recording) -> None:
        """Answer for a durable job whose gateway died, from what the recording has of it."""
        (job,), payloads = set_aside([job])
        job = msgspec.structs.replace(job, gateway=self.id, attempt=attempt, job_class=CLASSES[0])
        siblings = Siblings(job.request, 1, 1, payloads)
        inflight = InFlight(job, 0, recording, siblings, replaced=True)
        for piece in recording.pieces:
            inflight.took(piece)
        self._end_in_time([inflight])
        self._metrics.redelivered.labels(job.model, "adopted").inc()
        inflight.mark("adopted", attempt=attempt, tokens=len(inflight.token_ids))
        self._jobs[job.id] = inflight
        if inflight.is_stuck:
            self.fail(inflight, WorkerLost(STUCK))
        else:
            self._to_reissue.put_nowait((inflight, attempt))

    def _end_in_time(self, jobs: Sequence[InFlight]) -> None:
        """Those of one request."""
        left = jobs[0].job.deadline / 1000 - time.time()
        jobs[0].siblings.overdue = asyncio.get_running_loop().call_later(left, self._overdue, jobs)

    async def _put_aside(self, inflight: InFlight) -> None:
        if (payloads := inflight.siblings.payloads) is not None:
            await self._queue.put_aside(inflight.siblings.request, payloads)

    def _placed(self, inflight: InFlight, entry: Entry) -> None:
        if inflight.closed:
            self._errands.settle(entry)
        elif inflight.entry is None or inflight.worker is None:
            inflight.entry, inflight.replaced = entry, False

    def cancel(self, jobs: Iterable[str], why: str = "its client left") -> None:
        """Nobody waits for these any more. Sync: the caller's task may be being cancelled. Ended ones are fine."""
        for id in list(jobs):
            if inflight := self._jobs.get(id):
                inflight.mark("cancelled", why=why)
                self._withdraw(inflight)
                self._close(inflight)

    def fail(self, inflight: InFlight, error: TokenbusError) -> None:
        """Give one job up, wherever it is; its request ends with the error."""
        if not inflight.closed:
            self._withdraw(inflight)
            self._end_with(inflight, error)

    def _end_with(self, inflight: InFlight, error: TokenbusError) -> None:
        self._metrics.failed.labels(inflight.job.model, error.code).inc()
        inflight.mark("failed", code=error.code)
        self._close(inflight)
        inflight.mailbox.fail(error)

    def _overdue(self, jobs: Sequence[InFlight]) -> None:
        for inflight in jobs:
            self.fail(inflight, DeadlineExceeded(OVERDUE))

    def fail_all(self, error: TokenbusError) -> None:
        """This gateway leaves. Durable jobs run on: another one will answer for them."""
        for inflight in self:
            if inflight.job.is_durable:
                self._close(inflight, settles=False)
                inflight.mailbox.fail(error)
            else:
                self.fail(inflight, error)

    def _withdraw(self, inflight: InFlight) -> None:
        """Take the job away wherever it is: in a stream, on its way to a worker, or running. Of a durable job the owner
        key tells which attempt may run; another gateway's may, if this one slept."""
        if not inflight.job.is_durable:
            self._errands.cancel(inflight.job)
        self._abort(inflight)

    def _abort(self, inflight: InFlight) -> None:
        if inflight.worker:
            self._errands.abort(inflight.worker, inflight.job.id, inflight.job.attempt)

    def _moved(self, inflight: InFlight) -> None:
        """Another gateway answers for it."""
        self._abort(inflight)
        inflight.untold = False  # its story goes on there
        self._close(inflight)
        assert isinstance(inflight.mailbox, Recording)
        inflight.mailbox.moved()

    def _close(self, inflight: InFlight, *, settles: bool = True) -> None:
        inflight.closed = True
        self._jobs.pop(inflight.job.id, None)
        if settles and inflight.entry is not None:
            self._errands.settle(inflight.entry)
        if inflight.claimed_at is not None:
            self._admission.ended(inflight.job.model, time.monotonic() - inflight.claimed_at)
        siblings = inflight.siblings
        siblings.open_jobs -= 1
        if siblings.open_jobs == 0:
            self._last_closed(siblings)
        self._traces.write(inflight)

    def _last_closed(self, siblings: Siblings) -> None:
        if siblings.overdue is not None:
            siblings.overdue.cancel()
        if siblings.payloads is not None and not siblings.buried:
            self._errands.forget_payload(siblings.request)

    def write_traces(self) -> None:
        """Of open jobs: `explain` also tells where a request is that still runs."""
        for inflight in self:
            self._traces.write(inflight)

    def __iter__(self) -> Iterator[InFlight]:
        return iter(list(self._jobs.values()))

    # -- events ---------------------------------------------------------------------------------------------------

    def on_frame(self, message: bytes) -> None:
        try:
            frame = decode_frame(message)
        except msgspec.MsgspecError as error:
            log.error("not a frame: %s", error)
            return
        now = time.monotonic()
        for event in frame.events:
            try:
                self._on_event(event, now)
            except Exception:  # one job's trouble must not close the channel of all
                log.exception("event of job %s", event.job)

    def _on_event(self, event: Event, now: float) -> None:
        inflight = self._jobs.get(event.job)
        if isinstance(event, Withdrawn):
            if inflight is not None:
                self.cancel([event.job], "a client cancelled it")
                inflight.mailbox.fail(Cancelled(CANCELLED))
            return
        if inflight is None or not inflight.is_heard(event.attempt, event.worker):
            self._fence(inflight, event)
            return
        inflight.last_at = now
        if isinstance(event, Claimed):
            self._claimed(inflight, Entry(event.stream, event.entry))
            return
        if event.seq != inflight.next_seq:
            if event.seq > inflight.next_seq:  # a smaller one is a repeated publish
                self.reissue(inflight, "gap", crashed=False)
            return
        inflight.next_seq += 1
        if isinstance(event, Delta):
            self._delta(inflight, event, now)
        elif isinstance(event, Finished):
            self._finished(inflight, event)
        elif isinstance(event, Failed):
            self._failed(inflight, event)
        else:
            self.reissue(inflight, "released", crashed=False)

    def _fence(self, inflight: InFlight | None, event: Event) -> None:
        """Whoever works on it is told to stop; an entry that nobody else knows of is taken away."""
        self._metrics.fenced.labels(inflight.job.model if inflight else "").inc()
        if isinstance(event, Claimed):
            entry = Entry(event.stream, event.entry)
            if inflight is None or inflight.entry is None or inflight.entry[:2] != entry[:2]:
                self._errands.settle(entry)
        if not isinstance(event, Finished | Failed | Released):
            self._errands.abort(event.worker, event.job, event.attempt)

    def _claimed(self, inflight: InFlight, entry: Entry) -> None:
        if inflight.entry is None and inflight.job.attempt == 0:  # before Redis's answer came through
            inflight.mark("queued")
        inflight.entry, inflight.replaced = entry, False
        inflight.claimed_at = time.monotonic()
        self._metrics.claimed(inflight)
        inflight.mark("claimed", worker=inflight.worker or "", attempt=inflight.job.attempt)

    def _delta(self, inflight: InFlight, event: Delta, now: float) -> None:
        if inflight.first_token_at is None:
            inflight.first_token_at = now
            inflight.mark("first_token")
        elif inflight.next_seq == 1:
            inflight.mark("resumed")
        inflight.took(event)
        inflight.mailbox.add(inflight.index, event)

    def _finished(self, inflight: InFlight, event: Finished) -> None:
        inflight.mark("finished", reason=event.reason, tokens=event.usage.completion_tokens)
        self._metrics.finished(inflight, event)
        self._close(inflight)  # settles too: the worker may die before it does
        inflight.mailbox.finish(inflight.index, event.reason, event.usage, event.stop)

    def _failed(self, inflight: InFlight, event: Failed) -> None:
        error = TokenbusError.from_code(event.code, event.message, event.param)
        if event.retryable and not inflight.is_stuck:
            self.reissue(inflight, "engine", crashed=error.is_crash)
        else:
            self._end_with(inflight, error)

    # -- re-issue -------------------------------------------------------------------------------------------------

    def reissue(self, inflight: InFlight, reason: str, *, crashed: bool, worker: str = "") -> None:
        """Give the job to another worker, to go on from the tokens that are here; or give it up: after its third
        crash (the last of which it had alone), or when its engine cannot go on from tokens. `worker`: who had it,
        where no event has told that yet."""
        if inflight.closed:
            return
        job = inflight.job
        log.info("job %s, attempt %d: %s", job.id, job.attempt, reason)
        if inflight.is_stuck:
            self.fail(inflight, WorkerLost(STUCK))
            return
        if crashed:
            inflight.lost_workers.append(worker or inflight.holder)
        if crashed and job.crashes >= SUSPECT_AFTER_CRASHES:
            self._bury(inflight, reason)
            return
        self._metrics.redelivered.labels(job.model, reason).inc()
        silent_ms = int((time.monotonic() - inflight.last_at) * 1000)
        self._next_attempt(inflight, crashed)
        inflight.mark(
            "reissued",
            why=reason,
            attempt=inflight.job.attempt,
            crashes=inflight.job.crashes,
            tokens=len(inflight.token_ids),
            silent_ms=silent_ms,
        )

    def _bury(self, inflight: InFlight, reason: str) -> None:
        job = inflight.job
        self._metrics.deadletter.labels(job.model).inc()
        self._errands.bury(job, reason, inflight.lost_workers)
        if inflight.siblings.payloads is not None:
            inflight.siblings.buried = True
            self._errands.keep_payload(job.request, BURIED_PAYLOAD_TTL_MS)
        self.fail(inflight, WorkerLost(f"This request was given up after {job.crashes + 1} workers failed on it."))

    def _next_attempt(self, inflight: InFlight, crashed: bool) -> None:
        """From here on the old attempt is fenced off; its worker is told to stop."""
        job = inflight.job
        self._abort(inflight)
        inflight.job = msgspec.structs.replace(
            job,
            attempt=job.attempt + 1,
            crashes=job.crashes + crashed,
            job_class=CLASSES[0],
            resume=inflight.resume,
        )
        inflight.worker, inflight.claimed_at = None, None
        inflight.next_seq, inflight.entry_missing, inflight.replaced = 0, False, True
        inflight.last_at = time.monotonic()
        self._to_reissue.put_nowait((inflight, inflight.job.attempt))
