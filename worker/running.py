"""A job while this worker has it, and what of its progress is not published yet."""

from dataclasses import dataclass, field

from shared.durable import LOG_EVERY_PIECES, LOG_EVERY_S
from shared.errors import InvalidRequest, TokenbusError
from shared.messages import (
    Claimed,
    Delta,
    End,
    Event,
    Failed,
    Finished,
    FinishReason,
    Job,
    Progress,
    Released,
    Usage,
    encode,
)
from shared.queue import Entry
from worker.engines.base import Output

LARGEST_RESULT = 16 * 2**20  # bytes: at 32 MiB Redis cuts a gateway's subscription off, and all its streams with it


@dataclass(slots=True)
class RunningJob:
    """Progress gathers here between two publishes: a slow bus makes fewer, larger deltas, not a longer backlog. Of a
    durable job it stays in pieces, one for each step."""

    job: Job
    entry: Entry
    worker: str
    claim_published: bool = False
    seq: int = 0
    made: list[Progress] = field(default_factory=list)  # not published yet
    logged: int = 0  # pieces of a durable job in its log
    unlogged: list[Progress] = field(default_factory=list)
    unlogged_since: float = 0.0
    finished: tuple[FinishReason, Usage, str | None] | None = None
    error: TokenbusError | None = None
    released: bool = False
    request_id: str = field(init=False)  # the engine's name for this attempt: a later one may come back to this worker

    def __post_init__(self) -> None:
        self.request_id = f"{self.job.id}#{self.job.attempt}"
        self.logged = self.job.logged or 0

    @property
    def ended(self) -> bool:
        return self.finished is not None or self.error is not None or self.released

    def add(self, output: Output) -> None:
        if output.result is not None and len(encode(output.result)) > LARGEST_RESULT:
            self.error = InvalidRequest("The answer is larger than what is passed on at once; ask for less.")
            return
        if output.is_something:
            self._gather(output)
        if output.error is not None:
            self.error = output.error
        elif output.finish_reason is not None and output.usage is not None:
            self.finished = (output.finish_reason, output.usage, output.stop)

    def _gather(self, output: Output) -> None:
        if self.job.is_durable or not self.made:
            self.made.append(Progress())
        self.made[-1].add(output)

    def take_events(self) -> list[Event]:
        """What has happened since the last call, with the next sequence numbers."""
        job, attempt, worker = self.job.id, self.job.attempt, self.worker
        events: list[Event] = []
        if not self.claim_published:
            self.claim_published = True
            stream, entry, _ = self.entry
            events.append(Claimed(job=job, attempt=attempt, worker=worker, stream=stream, entry=entry))
        events += map(self._delta, self.made)
        if self.job.is_durable:
            self.unlogged += self.made
        self.made = []
        if self.ended:
            events.append(self._end(job, attempt, worker))
        return events

    def take_unlogged(self, now: float) -> tuple[list[Progress], End | None] | None:
        """What is to be written into the log of a durable job; None if that can wait."""
        self.unlogged_since = self.unlogged_since or now
        waits = now - self.unlogged_since < LOG_EVERY_S and len(self.unlogged) < LOG_EVERY_PIECES
        if waits and not self.ended:
            return None
        pieces, self.unlogged, self.unlogged_since = self.unlogged, [], 0.0
        self.logged += len(pieces)
        return pieces, self._log_end()

    def _log_end(self) -> End | None:
        """One that no other worker could do better."""
        if self.finished is not None:
            reason, usage, stop = self.finished
            return End(reason=reason, usage=usage, stop=stop)
        if self.error is not None and not self.error.retryable:
            return End(code=self.error.code, message=self.error.message, param=self.error.param)
        return None

    def _delta(self, made: Progress) -> Delta:
        return Delta(
            job=self.job.id,
            attempt=self.job.attempt,
            worker=self.worker,
            seq=self._next(),
            text=made.text,
            reasoning=made.reasoning,
            tool_calls=made.tool_calls,
            token_ids=made.token_ids,
            logprobs=made.logprobs,
            prompt_logprobs=made.prompt_logprobs,
            embeddings=made.embeddings,
            result=made.result,
        )

    def _end(self, job: str, attempt: int, worker: str) -> Event:
        if self.finished is not None:
            reason, usage, stop = self.finished
            seq = self._next()
            return Finished(job=job, attempt=attempt, worker=worker, seq=seq, reason=reason, usage=usage, stop=stop)
        if self.error is not None:
            return Failed(
                job=job,
                attempt=attempt,
                worker=worker,
                seq=self._next(),
                code=self.error.code,
                message=self.error.message,
                param=self.error.param,
                retryable=self.error.retryable,
            )
        return Released(job=job, attempt=attempt, worker=worker, seq=self._next())

    def _next(self) -> int:
        self.seq += 1
        return self.seq - 1
