"""Small commands that nobody waits for (settle, cancel, abort, trace), sent in batches by a task of their own.

A request's cleanup cannot await: it may run while its task is being cancelled. It leaves a note here instead.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from shared.connection import BUS_ERRORS, Redis
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import Abort, Job, Trace, encode
from shared.queue import CANCELLED_SLACK_MS, Entry, script, settle

log = get_logger(__name__)

Errand = Callable[[Any], object]


class Errands:
    """Sent at least once, in order; all are idempotent. While Redis is away at most MOST of them are kept: what a
    dropped one leaves behind, fencing and the janitor catch."""

    MOST = 20_000
    BATCH = 1_000
    DEAD_LETTERS = 1_000  # per model
    REQUEST_ID_TTL_MS = 600_000

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._pending: deque[Errand] = deque(maxlen=self.MOST)
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self._bury = script("bury")

    def settle(self, entry: Entry) -> None:
        self._add(lambda pipe: settle(pipe, entry))

    def abort(self, worker: str, job: str, attempt: int) -> None:
        self._add(lambda pipe: pipe.publish(self._keys.control(worker), encode(Abort(job, attempt))))

    def cancel(self, job: Job) -> None:
        """For whoever claims the job later."""
        key = self._keys.cancelled(job.id)
        self._add(lambda pipe: pipe.set(key, "1", pxat=job.deadline + CANCELLED_SLACK_MS))

    def bury(self, job: Job, reason: str, workers: Sequence[str]) -> None:
        """Into the model's dead letters, for people to look at."""
        row = [encode(job), reason, ",".join(workers), self.DEAD_LETTERS]
        self._add(lambda pipe: pipe.eval(self._bury, 1, self._keys.dead(job.model), *row))

    def forget_payload(self, request: str) -> None:
        self._add(lambda pipe: pipe.unlink(self._keys.payload(request)))

    def keep_payload(self, request: str, ttl_ms: int) -> None:
        self._add(lambda pipe: pipe.pexpire(self._keys.payload(request), ttl_ms))

    def trace(self, trace: Trace, until: int) -> None:
        """`until` in ms since the epoch."""
        self._add(lambda pipe: pipe.set(self._keys.trace(trace.job), encode(trace), pxat=until))

    def name_request(self, request_id: str, request: str, deadline: int) -> None:
        """For those who look it up by the x-request-id that its client chose."""
        key = self._keys.request(request_id)
        self._add(lambda pipe: pipe.set(key, request, pxat=deadline + self.REQUEST_ID_TTL_MS))

    def _add(self, errand: Errand) -> None:
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

    async def _send(self, batch: list[Errand]) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for errand in batch:
                    errand(pipe)
                # One refused errand (a group that is gone) must not keep the others from being sent.
                await pipe.execute(raise_on_error=False)
        except BaseException:
            self._pending.extendleft(reversed(batch))
            raise
