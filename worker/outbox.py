"""Publishes progress: one PUBLISH per gateway for all that its jobs have made, then settles what has ended. That of
durable jobs goes into their logs too, now and then."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from shared.connection import BUS_ERRORS, Bus
from shared.durable import LOG_EVERY_S, DurableLogs
from shared.errors import EngineFailed
from shared.keys import Keys
from shared.line import Command
from shared.logging import get_logger
from shared.messages import Event, Failed, Frame, encode
from shared.queue import settle
from worker.running import RunningJob

log = get_logger(__name__)


class Outbox:
    """What arrives while a publish is under way goes out with the next; a failed publish is sent again as it was
    (the gateway knows a repeated seq), before anything newer is even built: so while Redis is away each job's progress
    gathers in one delta."""

    RETRY_S = 0.2

    def __init__(
        self,
        redis: Bus,
        keys: Keys,
        on_settled: Callable[[RunningJob], None],
        on_fenced: Callable[[RunningJob], None],
    ) -> None:
        """on_fenced: its log does not take what this attempt makes."""
        self._redis = redis
        self._keys = keys
        self._on_settled = on_settled
        self._on_fenced = on_fenced
        self._logs = DurableLogs(redis, keys)
        self._changed: dict[str, RunningJob] = {}
        self._frames: dict[str, bytes] = {}  # by gateway: built, not yet known to be sent
        self._unlogged: dict[str, RunningJob] = {}
        self._log_entries: list[tuple[RunningJob, Command]] = []  # like the frames
        self._ended: list[RunningJob] = []
        self._orphaned: set[str] = set()  # requests
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def changed(self, *running: RunningJob) -> None:
        """They have something to publish."""
        for one in running:
            self._changed[one.request_id] = one
        self._empty.clear()
        self._wake.set()

    def forget(self, running: RunningJob) -> None:
        """Nothing more of it goes out: nobody waits for it."""
        self._changed.pop(running.request_id, None)
        self._unlogged.pop(running.request_id, None)

    def settle_unrun(self, running: RunningJob) -> None:
        """Takes the entry away without a word: cancelled, or overdue."""
        self.forget(running)
        self._ended.append(running)
        self._empty.clear()
        self._wake.set()

    def settle_orphan(self, running: RunningJob) -> None:
        """Its gateway is gone: what lies aside for its request goes too."""
        self._orphaned.add(running.job.request)
        self.settle_unrun(running)

    async def flushed(self) -> None:
        await self._empty.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._is_due()
            if not self._frames and not self._log_entries:
                self._build_frames()
                self._build_log_entries()
            try:
                await self._send()
            except BUS_ERRORS as error:
                log.warning("could not publish: %s", error)
                await asyncio.sleep(self.RETRY_S)
                self._wake.set()
                continue
            if self._changed:
                self._wake.set()
            elif not self._wake.is_set():
                self._empty.set()

    async def _is_due(self) -> None:
        """Something changed, or was held back from a log for long enough."""
        if self._unlogged:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOG_EVERY_S):
                    await self._wake.wait()
        else:
            await self._wake.wait()
        self._wake.clear()

    def _build_frames(self) -> None:
        changed, self._changed = self._changed, {}
        events: dict[str, list[Event]] = {}
        for running in changed.values():
            events.setdefault(running.job.gateway, []).extend(running.take_events())
            if running.job.is_durable:
                self._unlogged[running.request_id] = running
            if running.ended:
                self._ended.append(running)
        self._frames = {gateway: _frame(some) for gateway, some in events.items()}

    def _build_log_entries(self) -> None:
        now = asyncio.get_running_loop().time()
        for running in list(self._unlogged.values()):
            before = running.logged
            if (entry := running.take_unlogged(now)) is not None:
                del self._unlogged[running.request_id]
                if any(entry):
                    job = running.job
                    try:
                        command = self._logs.append(job.request, job.attempt, before, *entry)
                    except Exception:  # as in a frame; what comes after it is fenced off by the gap
                        log.exception("something cannot be logged")
                        continue
                    self._log_entries.append((running, command))

    async def _send(self) -> None:
        """Ends are published and logged before they are settled: the other way round, a crash in between would lose
        them."""
        frames, ended, orphaned = dict(self._frames), list(self._ended), set(self._orphaned)
        replies = await self._redis.line.batch(
            [
                *(entry for _, entry in self._log_entries),
                *(("PUBLISH", self._keys.events(gateway), frame) for gateway, frame in frames.items()),
                *settle(running.entry for running in ended),
                *(("UNLINK", self._keys.payload(request)) for request in orphaned),
            ]
        )
        fenced = [one for (one, _), taken in zip(self._log_entries, replies, strict=False) if not taken]
        self._frames.clear()
        self._log_entries.clear()
        del self._ended[: len(ended)]
        self._orphaned -= orphaned
        for running in ended:
            self._on_settled(running)
        for running in fenced:
            if not running.ended:
                self._on_fenced(running)


def _frame(events: list[Event]) -> bytes:
    """What an engine has made that cannot be told (text that is no Unicode, say) fails its own job, and takes neither
    this session nor other jobs along."""
    try:
        return encode(Frame(events))
    except Exception:
        log.exception("something cannot be passed on")
        return encode(Frame([_told_or_failed(event) for event in events]))


def _told_or_failed(event: Event) -> Event:
    try:
        encode(event)
    except Exception:
        return Failed(
            job=event.job,
            attempt=event.attempt,
            worker=event.worker,
            seq=getattr(event, "seq", 0),
            code=EngineFailed.code,
            message="The engine made something that cannot be passed on.",
        )
    return event
