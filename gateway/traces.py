"""Traces for `tokenbus explain`: of every job, kept for as long as there is room for them."""

import time

from gateway.errands import Errands
from gateway.inflight import InFlight


class TraceBudget:
    """How long traces are kept: some 600 bytes of Redis each, so that under load the plain successes age sooner."""

    LONG_MS, SHORT_MS = 600_000, 30_000
    LONG_PER_S = 50

    def __init__(self) -> None:
        self._second = 0
        self._taken = 0

    def ttl_ms(self) -> int:
        """Of one more plain success."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._taken = second, 0
        self._taken += 1
        return self.LONG_MS if self._taken <= self.LONG_PER_S else self.SHORT_MS


class Traces:
    def __init__(self, errands: Errands) -> None:
        self._errands = errands
        self._budget = TraceBudget()

    def write(self, inflight: InFlight) -> None:
        """What Redis does not have of it yet."""
        if not inflight.untold:
            return
        inflight.untold = False
        now = int(time.time() * 1000)
        if not inflight.closed:
            until = inflight.job.deadline + TraceBudget.LONG_MS
        elif inflight.is_plain:
            until = now + self._budget.ttl_ms()
        else:
            until = now + TraceBudget.LONG_MS
        self._errands.trace(inflight.trace(), until)
