"""What a gateway remembers of a request until its last byte: a mailbox, and one InFlight per job."""

import asyncio
import time
from dataclasses import dataclass, field

from shared.errors import TokenbusError
from shared.messages import Delta, FinishReason, Job, Milestone, Progress, Resume, Trace, Usage
from shared.queue import Entry

MOST_MILESTONES = 64  # of one job; those in the middle are dropped
KEPT_FIRST = 8


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Update(Progress, kw_only=True):
    """What one choice has made since it was last looked at. A struct, since each token makes one."""

    index: int
    finish_reason: FinishReason | None = None
    stop: str | None = None  # the stop string that ended it
    usage: Usage | None = None


class Mailbox:
    """From the hub to the one task that answers a request. Holds at most one merged update per choice, so that a slow
    client costs memory for its text only."""

    def __init__(self) -> None:
        self._updates: dict[int, Update] = {}
        self._error: TokenbusError | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def add(self, index: int, made: Progress | Delta) -> None:
        self._of(index).add(made)

    def finish(self, index: int, reason: FinishReason, usage: Usage, stop: str | None = None) -> None:
        update = self._of(index)
        update.finish_reason, update.usage, update.stop = reason, usage, stop

    def _of(self, index: int) -> Update:
        update = self._updates.get(index)
        if update is None:
            update = self._updates[index] = Update(index=index)
            self.wake()
        return update

    def fail(self, error: TokenbusError) -> None:
        self._error = self._error or error
        self.wake()

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    def close(self) -> None:
        """The client left: whoever waits in `get` is told."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Whoever waits in `get` looks again, and comes back with nothing if there is nothing."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> list[Update]:
        """What is new. Raises the request's error after its last update, or ClientGone."""
        updates = self._take()
        if not updates and self._error is None and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            updates = self._take()
        if self._closed:
            raise ClientGone
        if self._error is not None and not updates:
            raise self._error
        return updates

    def _take(self) -> list[Update]:
        if not self._updates:
            return []
        updates, self._updates = list(self._updates.values()), {}
        return updates


@dataclass(slots=True)
class Siblings:
    """What the jobs of one request share, until the last of them has ended."""

    request: str
    jobs: int
    open_jobs: int
    payloads: bytes | None = None  # that lie beside the jobs
    buried: bool = False  # one of its jobs: then they are kept, for people to look at
    overdue: asyncio.TimerHandle | None = None  # at the deadline


@dataclass(slots=True)
class InFlight:
    """One job that this gateway answers for. `token_ids` and the counts of what was sent are what a
    next attempt goes on from, see `resume`."""

    job: Job
    index: int
    mailbox: Mailbox
    siblings: Siblings
    entry: Entry | None = None  # None until Redis has answered the first enqueue
    replaced: bool = False  # `entry` is that of the last attempt: the re-issue is still on its way
    worker: str | None = None  # the first claimer of the current attempt
    claimed_at: float | None = None  # by that worker
    next_seq: int = 0
    token_ids: list[int] = field(default_factory=list)
    chars: int = 0
    reasoning_chars: int = 0
    calls: int = 0
    arguments_chars: int = 0
    closed: bool = False
    entry_missing: bool = False  # seen at the last look, see Watch
    accepted_at: float = field(default_factory=time.monotonic)
    last_at: float = field(default_factory=time.monotonic)  # of the last sign of the current attempt
    first_token_at: float | None = None
    lost_workers: list[str] = field(default_factory=list)  # that failed while they had it
    milestones: list[Milestone] = field(default_factory=list)
    untold: bool = False  # there are milestones that Redis does not have

    def is_heard(self, attempt: int, worker: str) -> bool:
        """Only the first claimer of the current attempt may speak."""
        if attempt != self.job.attempt:
            return False
        if self.worker is None:
            self.worker = worker
        return worker == self.worker

    @property
    def holder(self) -> str:
        """The worker that has the job, or whose inbox it lies in; else ''."""
        return self.worker or (self.entry.addressed_to if self.entry and not self.replaced else "")

    @property
    def awaits_claim(self) -> bool:
        """Nobody has said that it has the current attempt, which is in its stream."""
        return not self.closed and self.worker is None and not self.replaced

    @property
    def is_plain(self) -> bool:
        """It went as it should: nobody will ask why."""
        return self.job.attempt == 0 and bool(self.milestones) and self.milestones[-1].event == "finished"

    def took(self, made: Progress | Delta) -> None:
        """It has gone to the mailbox."""
        self.token_ids += made.token_ids
        self.chars += len(made.text)
        self.reasoning_chars += len(made.reasoning)
        for call in made.tool_calls:
            self.calls += bool(call.name)
            self.arguments_chars += len(call.arguments)

    @property
    def resume(self) -> Resume | None:
        """What the next attempt is told; None if it begins anew."""
        if not self.token_ids:
            return None
        return Resume(list(self.token_ids), self.chars, self.reasoning_chars, self.calls, self.arguments_chars)

    @property
    def is_stuck(self) -> bool:
        """The client has something that no token ids tell of: nobody can go on from there."""
        return not self.token_ids and bool(self.chars or self.reasoning_chars or self.calls)

    def mark(self, event: str, **details: str | int) -> None:
        """Note a milestone for `tokenbus explain`."""
        if len(self.milestones) == MOST_MILESTONES:
            del self.milestones[KEPT_FIRST]
        self.milestones.append(Milestone(int(time.time() * 1000), event, details))
        self.untold = True

    def trace(self) -> Trace:
        job = self.job
        return Trace(
            job=job.id,
            request=job.request,
            model=job.model,
            gateway=job.gateway,
            index=self.index,
            jobs=self.siblings.jobs,
            deadline=job.deadline,
            milestones=list(self.milestones),
        )
