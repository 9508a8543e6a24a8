"""Small commands that nobody waits for (settle, cancel, abort, trace), sent in batches by a task of their own.

A request's cleanup cannot await: it may run while its task is being cancelled. It leaves a note here instead.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from shared.connection import BUS_ERRORS, Redis
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import Abort, Job, encode
from shared.queue import PAYLOAD_SLACK_MS, Entry, settle

log = get_logger(__name__)

Errand = Callable[[Any], object]


class Errands:
    """Sent at least once, in order; all are idempotent. While Redis is away at most MOST of them are kept: what a
    dropped one leaves behind, fencing and the janitor catch."""

    MOST = 20_000
    BATCH = 1_000
    TRACE_TTL_MS = 600_000
    TRACE_ROWS = 64
    DEAD_LETTERS = 1_000  # per model

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._pending: deque[Errand] = deque(maxlen=self.MOST)
        self._wake = asyncio.Event()

    def settle(self, entry: Entry) -> None:
        self._add(lambda pipe: settle(pipe, entry))

    def abort(self, worker: str, job: str, attempt: int) -> None:
        self._add(lambda pipe: pipe.publish(self._keys.control(worker), encode(Abort(job, attempt))))

    def cancel(self, job: Job) -> None:
        """For whoever claims the job later."""
        key = self._keys.cancelled(job.id)
        self._add(lambda pipe: pipe.set(key, "1", pxat=job.deadline + PAYLOAD_SLACK_MS))

    def bury(self, job: Job, reason: str) -> None:
        """Into the model's dead letters, for people to look at."""
        row = {"job": encode(job), "reason": reason}
        self._add(lambda pipe: pipe.xadd(self._keys.dead(job.model), row, maxlen=self.DEAD_LETTERS, approximate=True))

    def forget_payload(self, request: str) -> None:
        self._add(lambda pipe: pipe.unlink(self._keys.payload(request)))

    def trace(self, job: str, row: dict[str, str | int]) -> None:
        key = self._keys.trace(job)
        self._add(lambda pipe: pipe.xadd(key, row, maxlen=self.TRACE_ROWS, approximate=True))
        self._add(lambda pipe: pipe.pexpire(key, self.TRACE_TTL_MS))

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
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(len(self._pending), self.BATCH))]
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for errand in batch:
                        errand(pipe)
                    # One refused errand (a group that is gone) must not keep the others from being sent.
                    await pipe.execute(raise_on_error=False)
            except BaseException:
                self._pending.extendleft(reversed(batch))
                raise
