"""Small commands that nobody waits for (settle, cancel, abort, trace), sent in batches by a task of their own.

A request's cleanup cannot await: it may run while its task is being cancelled. It leaves a note here instead.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from shared.connection import BUS_ERRORS, Bus, is_passing
from shared.keys import Keys
from shared.line import Command
from shared.logging import get_logger
from shared.messages import Abort, Job, Trace, encode
from shared.queue import CANCELLED_SLACK_MS, Entry, script, settle

log = get_logger(__name__)


class Errands:
    """Sent at least once, in order; all are idempotent. While Redis is away at most MOST of them are kept: what a
    dropped one leaves behind, fencing and the janitor catch."""

    MOST = 20_000
    BATCH = 1_000
    DEAD_LETTERS = 1_000  # per model
    REQUEST_ID_TTL_MS = 600_000

    def __init__(self, redis: Bus, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._pending: deque[Command | Entry] = deque(maxlen=self.MOST)  # an entry: to be settled
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self._bury = script("bury")

    def settle(self, entry: Entry) -> None:
        self._add(entry)

    def abort(self, worker: str, job: str, attempt: int) -> None:
        self._add(("PUBLISH", self._keys.control(worker), encode(Abort(job, attempt))))

    def cancel(self, job: Job) -> None:
        """For whoever claims the job later."""
        key = self._keys.cancelled(job.id)
        self._add(("SET", key, "1", "PXAT", job.deadline + CANCELLED_SLACK_MS))

    def bury(self, job: Job, reason: str, workers: Sequence[str]) -> None:
        """Into the model's dead letters, for people to look at."""
        row = (encode(job), reason, ",".join(workers), self.DEAD_LETTERS)
        self._add(("EVAL", self._bury.source, 1, self._keys.dead(job.model), *row))

    def forget_payload(self, request: str) -> None:
        self._add(("UNLINK", self._keys.payload(request)))

    def keep_payload(self, request: str, ttl_ms: int) -> None:
        self._add(("PEXPIRE", self._keys.payload(request), ttl_ms))

    def trace(self, trace: Trace, until: int) -> None:
        """`until` in ms since the epoch."""
        self._add(("SET", self._keys.trace(trace.job), encode(trace), "PXAT", until))

    def name_request(self, request_id: str, request: str, deadline: int) -> None:
        """For those who look it up by the x-request-id that its client chose."""
        key = self._keys.request(request_id)
        self._add(("SET", key, request, "PXAT", deadline + self.REQUEST_ID_TTL_MS))

    def _add(self, errand: Command | Entry) -> None:
        self._pending.append(errand)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
            except BUS_ERRORS as error:
                log.debug("errands wait: %s", error)
                await asyncio.sleep(0.2)
                self._wake.set()

    async def flush(self) -> None:
        """Returns when all that was pending is sent."""
        async with self._sending:
            while self._pending:
                await self._send([self._pending.popleft() for _ in range(min(len(self._pending), self.BATCH))])

    async def _send(self, batch: list[Command | Entry]) -> None:
        entries = [errand for errand in batch if isinstance(errand, Entry)]
        commands = [errand for errand in batch if not isinstance(errand, Entry)]
        try:
            # One refused errand (a group that is gone) must not keep the others from being sent.
            for reply in await self._redis.line.replies([*commands, *settle(entries)]):
                if isinstance(reply, Exception) and is_passing(reply):
                    raise reply
        except BaseException:
            self._pending.extendleft(reversed(batch))
            raise
