"""Publishes progress: one PUBLISH per gateway for all that its jobs have made, then settles what has ended."""

import asyncio
from collections.abc import Callable

from shared.connection import BUS_ERRORS, Bus
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import Event, Frame, encode
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
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._on_settled = on_settled
        self._changed: dict[str, RunningJob] = {}
        self._frames: dict[str, list[Event]] = {}  # by gateway: built, not yet known to be sent
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
            await self._wake.wait()
            self._wake.clear()
            if not self._frames:
                self._build_frames()
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

    def _build_frames(self) -> None:
        changed, self._changed = self._changed, {}
        for running in changed.values():
            self._frames.setdefault(running.job.gateway, []).extend(running.take_events())
            if running.ended:
                self._ended.append(running)

    async def _send(self) -> None:
        """Ends are published before they are settled: the other way round, a crash in between would lose them."""
        frames, ended, orphaned = dict(self._frames), list(self._ended), set(self._orphaned)
        await self._redis.line.batch(
            [
                *(("PUBLISH", self._keys.events(gateway), encode(Frame(events))) for gateway, events in frames.items()),
                *settle(running.entry for running in ended),
                *(("UNLINK", self._keys.payload(request)) for request in orphaned),
            ]
        )
        self._frames.clear()
        del self._ended[: len(ended)]
        self._orphaned -= orphaned
        for running in ended:
            self._on_settled(running)
