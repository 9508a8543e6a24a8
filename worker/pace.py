"""How fast this worker steps, beside the fastest worker of its model. One that is much slower leaves a new job to the
others for as long as its own first token would come later than theirs: it takes what they have no room for."""

import msgspec

from shared.connection import Bus
from shared.keys import Keys
from shared.messages import decode_worker

SMOOTHING = 0.1
MUCH_SLOWER = 2.0
STEPS_TO_A_TOKEN = 2  # a new job waits for the step under way, then for its own
LEAST_MS, MOST_MS = 5, 1000


class Pace:
    def __init__(self, redis: Bus, keys: Keys, model: str, worker: str) -> None:
        self._redis = redis
        self._keys = keys
        self._model = model
        self._worker = worker
        self._stepped_at: float | None = None  # None: idle since
        self.step_ms = 0.0  # of the last steps; 0: not known yet
        self.handicap_ms = 0  # that a job has to wait before this worker may take it

    def stepped(self, now: float, *, goes_on: bool) -> None:
        """At the end of a step, in s of the monotonic clock; `goes_on`: there is something left to step."""
        if self._stepped_at is not None:
            took = (now - self._stepped_at) * 1000
            self.step_ms += (took - self.step_ms) * (SMOOTHING if self.step_ms else 1.0)
        self._stepped_at = now if goes_on else None

    async def look(self) -> None:
        """At the leases of the others. Raises what the bus raises."""
        ids = [id.decode(errors="replace") for id in await self._redis.line.ask("ZRANGE", self._index, 0, -1)]
        leases = [self._keys.worker(self._model, id) for id in ids if id != self._worker]
        self.handicap_ms = self._beside(await self._redis.line.ask("MGET", *leases)) if leases else 0

    @property
    def _index(self) -> str:
        return self._keys.workers(self._model)

    def _beside(self, leases: list[bytes | None]) -> int:
        steps = []
        for lease in leases:
            try:
                info = decode_worker(lease) if lease else None
            except msgspec.MsgspecError:  # not ours
                continue
            if info and info.state == "ready" and info.step_ms:
                steps.append(info.step_ms)
        fastest = min(steps, default=0.0)
        if not fastest or self.step_ms < MUCH_SLOWER * fastest:
            return 0
        handicap = int(STEPS_TO_A_TOKEN * (self.step_ms - fastest))
        return 0 if handicap < LEAST_MS else min(handicap, MOST_MS)
