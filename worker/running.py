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

    @property
    def request_id(self) -> str:
        """The engine's name for this attempt: a later attempt may come back to the same worker."""
        return f"{self.job.id}#{self.job.attempt}"

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
        of = {"job": self.job.id, "attempt": self.job.attempt, "worker": self.worker}
        events: list[Event] = []
        if not self.claim_published:
            self.claim_published = True
            events.append(Claimed(stream=self.entry.stream, entry=self.entry.id, **of))  # type: ignore[arg-type]
        if self.text or self.token_ids or self.embeddings is not None:
            delta = {"text": self.text, "token_ids": self.token_ids, "embeddings": self.embeddings}
            events.append(Delta(seq=self._next(), **delta, **of))  # type: ignore[arg-type]
            self.text, self.token_ids, self.embeddings = "", [], None
        if self.finished is not None:
            reason, usage = self.finished
            events.append(Finished(seq=self._next(), reason=reason, usage=usage, **of))  # type: ignore[arg-type]
        elif self.error is not None:
            error = self.error
            said = {"message": error.message, "param": error.param, "retryable": error.retryable}
            events.append(Failed(seq=self._next(), code=error.code, **said, **of))  # type: ignore[arg-type]
        elif self.released:
            events.append(Released(seq=self._next(), **of))  # type: ignore[arg-type]
        return events

    def _next(self) -> int:
        self.seq += 1
        return self.seq - 1
