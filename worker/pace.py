"""How fast this worker steps, beside the fastest worker of its model. One that is much slower leaves a new job to the
others for as long as its own first token would come later than theirs: it takes what they have no room for."""

import time
from collections.abc import Callable

import msgspec

from shared.connection import Bus
from shared.keys import Keys
from shared.messages import decode_worker

MUCH_SLOWER = 2.0
STEPS_TO_A_TOKEN = 2  # a new job waits for the step under way, then for its own
LEAST_MS, MOST_MS = 20, 1000
FRESH_S = 0.05


class Pace:
    def __init__(self, redis: Bus, keys: Keys, model: str, worker: str, step_ms: Callable[[], float]) -> None:
        self._redis = redis
        self._keys = keys
        self._model = model
        self._worker = worker
        self._measure = step_ms
        self._measured_at = 0.0
        self._step_ms = 0.0
        self._fastest_ms = 0.0  # of the others; 0: there are none that have stepped

    @property
    def step_ms(self) -> float:
        """0: not known."""
        now = time.monotonic()
        if now - self._measured_at > FRESH_S:
            self._measured_at, self._step_ms = now, self._measure()
        return self._step_ms

    @property
    def handicap_ms(self) -> int:
        """That a job has to wait before this worker may take it."""
        own, fastest = self.step_ms, self._fastest_ms
        if not fastest or own < MUCH_SLOWER * fastest:
            return 0
        handicap = int(STEPS_TO_A_TOKEN * (own - fastest))
        return 0 if handicap < LEAST_MS else min(handicap, MOST_MS)

    async def look(self) -> None:
        """At the leases of the others. Raises what the bus raises."""
        index = await self._redis.line.ask("ZRANGE", self._keys.workers(self._model), 0, -1)
        ids = [id.decode(errors="replace") for id in index]
        leases = [self._keys.worker(self._model, id) for id in ids if id != self._worker]
        blobs = await self._redis.line.ask("MGET", *leases) if leases else []
        self._fastest_ms = min((step for blob in blobs if (step := _step_of(blob))), default=0.0)


def _step_of(lease: bytes | None) -> float:
    """0 of who is gone, leaves, or has not stepped."""
    try:
        info = decode_worker(lease) if lease else None
    except msgspec.MsgspecError:  # not ours
        return 0.0
    return info.step_ms if info and info.state == "ready" else 0.0
