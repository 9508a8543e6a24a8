"""Who may wait, and what a 429 promises.

A virtual queue: each refused request is given the next slot in time, spaced as fast as the model ends jobs, and is told
how far off it is. Room is kept for those who come back in time; others are refused meanwhile. A request that comes
back is known by its body: it is sent again as it was.
"""

import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

Clock = Callable[[], float]


class DrainRate:
    """How fast one model ends the jobs of this gateway while others wait."""

    WINDOW_S = 10.0
    TURNOVER_S = 5.0  # of the slots, as long as nothing has ended
    CLAIM_S = 0.1  # from an end to the next claim
    FRESH_S = 0.1  # an estimate is good for so long
    MOST = 10_000  # ends that are looked at

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=self.MOST)
        self._service: float | None = None  # s that a slot is taken by a job, a moving mean
        self._full_since = self._refused_at = self._estimated_at = -math.inf
        self._estimate = (0.0, 0.0)

    def ended(self, seconds: float) -> None:
        """A job that was running for so long."""
        self._ends.append(self._clock())
        self._service = seconds if self._service is None else 0.9 * self._service + 0.1 * seconds

    def while_full(self, slots: int) -> tuple[float, float]:
        """Jobs a second, and s within which one of them surely ends: they may end in bunches."""
        now = self._clock()
        if now - self._refused_at > self.WINDOW_S:
            self._full_since = now
        self._refused_at = now
        if now - self._estimated_at > self.FRESH_S:
            self._estimated_at, self._estimate = now, self._look(now, slots)
        return self._estimate

    def _look(self, now: float, slots: int) -> tuple[float, float]:
        """Ends are counted from where the queue was full, since before that they say how little was asked for. To them
        comes one turnover of the slots, as service times promise it; more of it would drown what is measured."""
        while self._ends and now - self._ends[0] > self.WINDOW_S:
            self._ends.popleft()
        service = max(self.TURNOVER_S if self._service is None else self._service, 0.001)
        since = max(self._full_since, now - self.WINDOW_S)
        weight = min(service, self.TURNOVER_S)
        ended = sum(end > since for end in self._ends)
        rate = (ended + slots * weight / service) / (now - since + weight)
        return rate, min(service, self._longest_gap(now, slots)) + self.CLAIM_S

    def _longest_gap(self, now: float, slots: int) -> float:
        if len(self._ends) <= slots:  # not one turnover was seen
            return math.inf
        return max(later - earlier for earlier, later in pairwise((*self._ends, now)))


@dataclass(slots=True)
class Promise:
    slot: float
    expires: float
    body: int
    jobs: int  # 0 once it is kept or broken


@dataclass(slots=True)
class Promises:
    """Those to the clients of one model. They are in `coming`, then in `held` from when room is kept for them."""

    rate: DrainRate
    coming: list[tuple[float, int, Promise]] = field(default_factory=list)  # a heap by slot
    held: list[tuple[float, int, Promise]] = field(default_factory=list)  # a heap by expiry
    by_body: dict[int, deque[Promise]] = field(default_factory=dict)  # of `held`
    reserved: int = 0  # jobs of `held`
    lead: float = 0.0  # s before its slot from which room is kept, so that there is some by then
    front: float = -math.inf  # the last slot of those whom a promise failed
    tail: float = -math.inf  # the last slot of all
    made: int = 0

    def advance(self, now: float) -> None:
        while self.coming and self.coming[0][0] <= now + self.lead:
            _, number, promise = heapq.heappop(self.coming)
            heapq.heappush(self.held, (promise.expires, number, promise))
            self.by_body.setdefault(promise.body, deque()).append(promise)
            self.reserved += promise.jobs
        while self.held and self.held[0][0] <= now:
            _, _, promise = heapq.heappop(self.held)
            self._drop(promise)

    def take(self, body: int, now: float) -> bool:
        """Whether somebody with this body may come now; this promise is kept then."""
        same = self.by_body.get(body)
        if not same or same[0].slot > now:
            return False
        self._drop(same[0])
        return True

    def _drop(self, promise: Promise) -> None:
        self.reserved -= promise.jobs
        promise.jobs = 0
        same = self.by_body.get(promise.body)
        while same and not same[0].jobs:
            same.popleft()
        if same is not None and not same:
            del self.by_body[promise.body]

    def add(self, promise: Promise) -> None:
        self.made += 1
        heapq.heappush(self.coming, (promise.slot, self.made, promise))


class Admission:
    """The bound of each model's queue. Sync; keeps nothing but promises, which are bounded in number and time."""

    LONGEST_S = 60.0
    GRACE_S = 2.0  # that a client may be late, after the whole second that it was told
    SLACK = 1.2  # slots are further apart than jobs end: what is left over goes to whoever comes
    MOST = 10_000  # promises per model

    def __init__(self, max_queue: int, clock: Clock = time.monotonic) -> None:
        self._max_queue = max_queue
        self._clock = clock
        self._models: dict[str, Promises] = {}

    def ended(self, model: str, seconds: float) -> None:
        self._of(model).rate.ended(seconds)

    def room(self, model: str, body: int | None) -> tuple[int, bool]:
        """How many jobs may wait, the asker's included; and whether it comes back as it was told. `body` is a hash, or
        None for what was certainly never sent before."""
        promises, now = self._of(model), self._clock()
        promises.advance(now)
        if body is not None and promises.take(body, now):
            return self._max_queue, True
        return self._max_queue - promises.reserved, False

    def refuse(self, model: str, body: int, jobs: int, slots: int, *, came_back: bool) -> float:
        """A promise: s until the asker should come back. One whom a promise failed is next, before all others."""
        promises, now = self._of(model), self._clock()
        rate, promises.lead = promises.rate.while_full(slots)
        first, step = now + promises.lead, jobs * max(self.SLACK / rate, 1 / self._max_queue)
        tail = max(promises.tail, first) + step
        front = max(promises.front, first) + step
        slot = min(front, tail) if came_back else tail
        if slot - now > self.LONGEST_S or len(promises.coming) + len(promises.held) >= self.MOST:
            return random.uniform(self.LONGEST_S / 2, self.LONGEST_S)  # no promise: not all at once, at least
        promises.tail = tail
        if came_back:
            promises.front = front
        promises.add(Promise(slot, now + math.ceil(slot - now) + self.GRACE_S, body, jobs))
        return slot - now

    def _of(self, model: str) -> Promises:
        if model not in self._models:
            self._models[model] = Promises(DrainRate(self._clock))
        return self._models[model]
