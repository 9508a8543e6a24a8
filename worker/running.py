"""A job while this worker has it, and what of its progress is not published yet."""

from dataclasses import dataclass, field

from shared.errors import InvalidRequest, TokenbusError
from shared.messages import (
    Claimed,
    Delta,
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
    """Progress gathers here between two publishes: a slow bus makes fewer, larger deltas, not a longer backlog."""

    job: Job
    entry: Entry
    worker: str
    claim_published: bool = False
    seq: int = 0
    made: Progress = field(default_factory=Progress)
    finished: tuple[FinishReason, Usage, str | None] | None = None
    error: TokenbusError | None = None
    released: bool = False
    request_id: str = field(init=False)  # the engine's name for this attempt: a later one may come back to this worker

    def __post_init__(self) -> None:
        self.request_id = f"{self.job.id}#{self.job.attempt}"

    @property
    def ended(self) -> bool:
        return self.finished is not None or self.error is not None or self.released

    def add(self, output: Output) -> None:
        if output.result is not None and len(encode(output.result)) > LARGEST_RESULT:
            self.error = InvalidRequest("The answer is larger than what is passed on at once; ask for less.")
            return
        self.made.add(output)
        if output.error is not None:
            self.error = output.error
        elif output.finish_reason is not None and output.usage is not None:
            self.finished = (output.finish_reason, output.usage, output.stop)

    def take_events(self) -> list[Event]:
        """What has happened since the last call, with the next sequence numbers."""
        job, attempt, worker = self.job.id, self.job.attempt, self.worker
        events: list[Event] = []
        if not self.claim_published:
            self.claim_published = True
            stream, entry, _ = self.entry
            events.append(Claimed(job=job, attempt=attempt, worker=worker, stream=stream, entry=entry))
        if self.made.is_something:
            events.append(self._delta(self.made))
            self.made = Progress()
        if self.ended:
            events.append(self._end(job, attempt, worker))
        return events

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
