"""A job while this worker has it, and what of its progress is not published yet."""

from dataclasses import dataclass, field

from shared.errors import TokenbusError
from shared.messages import Claimed, Delta, Event, Failed, Finished, FinishReason, Job, Released, Usage
from shared.queue import Entry
from worker.engines.base import Output


@dataclass(slots=True)
class RunningJob:
    """Progress gathers here between two publishes: a slow bus makes fewer, larger deltas, not a longer backlog."""

    job: Job
    entry: Entry
    worker: str
    claim_published: bool = False
    seq: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    embeddings: list[str] | None = None
    finished: tuple[FinishReason, Usage] | None = None
    error: TokenbusError | None = None
    released: bool = False
    request_id: str = field(init=False)  # the engine's name for this attempt: a later one may come back to this worker

    def __post_init__(self) -> None:
        self.request_id = f"{self.job.id}#{self.job.attempt}"

    @property
    def ended(self) -> bool:
        return self.finished is not None or self.error is not None or self.released

    def add(self, output: Output) -> None:
        self.text += output.text
        self.token_ids += output.token_ids
        if output.embeddings is not None:
            self.embeddings = output.embeddings
        if output.error is not None:
            self.error = output.error
        elif output.finish_reason is not None and output.usage is not None:
            self.finished = (output.finish_reason, output.usage)

    def take_events(self) -> list[Event]:
        """What has happened since the last call, with the next sequence numbers."""
        job, attempt, worker = self.job.id, self.job.attempt, self.worker
        events: list[Event] = []
        if not self.claim_published:
            self.claim_published = True
            stream, entry, _ = self.entry
            events.append(Claimed(job=job, attempt=attempt, worker=worker, stream=stream, entry=entry))
        if self.text or self.token_ids or self.embeddings is not None:
            events.append(
                Delta(
                    job=job,
                    attempt=attempt,
                    worker=worker,
                    seq=self._next(),
                    text=self.text,
                    token_ids=self.token_ids,
                    embeddings=self.embeddings,
                )
            )
            self.text, self.token_ids, self.embeddings = "", [], None
        if self.ended:
            events.append(self._end(job, attempt, worker))
        return events

    def _end(self, job: str, attempt: int, worker: str) -> Event:
        if self.finished is not None:
            reason, usage = self.finished
            return Finished(job=job, attempt=attempt, worker=worker, seq=self._next(), reason=reason, usage=usage)
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
