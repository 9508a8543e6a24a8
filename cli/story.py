"""The life of one job in words: its milestones line by line, and what they come to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cli.bus import count
from shared.errors import WorkerLost
from shared.messages import Milestone, Trace

ENDS = ("finished", "failed", "cancelled")
WHY = {
    "worker_lost": "its worker was lost",
    "released": "its worker left",
    "stall": "no token came any more",
    "gap": "frames were lost",
    "entry_lost": "its entry was gone without an end",
    "engine": "its engine failed",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known now, beside the trace. Times in ms since the epoch."""

    now: int
    alive: frozenset[str] = field(default_factory=frozenset)  # gateways and workers that the traces name
    waiting: dict[str, int] = field(default_factory=dict)  # model -> jobs that wait for it
    served: frozenset[str] = field(default_factory=frozenset)  # models with a worker alive
    buried: frozenset[str] = field(default_factory=frozenset)  # jobs among the dead letters


class Story:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._milestones = trace.milestones

    def lines(self) -> list[tuple[str, str, str]]:
        """Clock time, ms since acceptance, event."""
        start = self._milestones[0].at if self._milestones else 0
        return [(_clock(one.at), f"+{one.at - start}", in_words(one)) for one in self._milestones]

    @property
    def ended(self) -> bool:
        return bool(self._milestones) and self._milestones[-1].event in ENDS

    @property
    def may_be_buried(self) -> bool:
        return self.ended and self._milestones[-1].details.get("code") == WorkerLost.code

    @property
    def holder(self) -> str:
        """The worker that has the job as far as is known, or ''."""
        last = next((one for one in reversed(self._milestones) if one.event in ("claimed", "reissued", *ENDS)), None)
        return str(last.details.get("worker", "")) if last and last.event == "claimed" else ""

    def closing(self, around: Surroundings) -> str:
        if not self._milestones:
            return "nothing is noted of it"
        if self.ended:
            dead = f"; `tokenbus dead {self.trace.job}` shows it" if self.trace.job in around.buried else ""
            return self._end() + dead
        if self.trace.gateway not in around.alive:
            return f"no end after {_s(self._age(around.now))}: its gateway is gone; nobody waits for it"
        return self._running(around) if self.holder else self._waiting(around)

    def _age(self, now: int) -> int:
        return max(0, now - self._milestones[0].at)

    def _end(self) -> str:
        last = self._milestones[-1]
        said = [f"{_s(self._waited())} waiting", count(self._attempts(), "attempt")]
        if pauses := self._pauses():
            said.append(f"longest pause {_s(max(pauses))}")
        return f"{last.event} after {_s(self._age(last.at))}: {', '.join(said)}"

    def _running(self, around: Surroundings) -> str:
        since = next(one.at for one in reversed(self._milestones) if one.event == "claimed")
        running = f"running on {self.holder} for {_s(max(0, around.now - since))}"
        if self.holder not in around.alive:
            return f"{running}; that worker is gone, and its gateway gives the job to another one"
        return running

    def _waiting(self, around: Surroundings) -> str:
        model = self.trace.model
        waiting = f"waiting for {_s(max(0, around.now - self._last_queued()))}"
        if model not in around.served:
            return f"{waiting}; nobody alive serves '{model}'"
        return f"{waiting}; jobs that wait for '{model}': {around.waiting.get(model, 0)}"

    def _last_queued(self) -> int:
        return next((one.at for one in reversed(self._milestones) if one.event == "reissued"), self._milestones[0].at)

    def _attempts(self) -> int:
        return 1 + max((int(one.details.get("attempt", 0)) for one in self._milestones), default=0)

    def _waited(self) -> int:
        """For a claim, or for the end if none came."""
        return sum(
            self._spans(lambda one: one.at if one.event in ("accepted", "adopted", "reissued") else None, "claimed")
        )

    def _pauses(self) -> list[int]:
        """From the last sign of a lost attempt to the first of the next one."""

        def fell_silent(one: Milestone) -> int | None:
            return one.at - int(one.details.get("silent_ms", 0)) if one.event == "reissued" else None

        return self._spans(fell_silent, "resumed", "first_token")

    def _spans(self, start_of: Callable[[Milestone], int | None], *ends: str) -> list[int]:
        """In ms, from each start to the next of these events, or to the job's end."""
        spans: list[int] = []
        start: int | None = None
        for one in self._milestones:
            if start is None:
                start = start_of(one)
            elif one.event in (*ends, *ENDS):
                spans.append(max(0, one.at - start))
                start = None
        return spans


def in_words(one: Milestone) -> str:
    """An event that a newer gateway has written is shown as it is."""
    details = one.details
    match one.event:
        case "accepted" | "queued":
            return one.event
        case "adopted":
            return f"adopted from a gateway that died: {count(int(details.get('tokens', 0)), 'token')} so far"
        case "claimed":
            return f"claimed by {details.get('worker')} (attempt {int(details.get('attempt', 0)) + 1})"
        case "first_token":
            return "first token"
        case "resumed":
            return "goes on"
        case "reissued":
            return f"given to another worker: {_reissue(details)}"
        case "finished":
            return f"finished ({details.get('reason')}, {count(int(details.get('tokens', 0)), 'token')})"
        case "failed":
            return f"failed ({details.get('code')})"
        case "cancelled":
            return f"cancelled: {details.get('why', 'its client left')}"
    told = ", ".join(f"{name} {value}" for name, value in details.items())
    return f"{one.event} ({told})" if told else one.event


def _reissue(details: dict[str, str | int]) -> str:
    why = str(details.get("why", "?"))
    tokens, crashes = int(details.get("tokens", 0)), int(details.get("crashes", 0))
    said = [WHY.get(why, why), f"{count(tokens, 'token')} so far"]
    return ", ".join([*said, count(crashes, "crash")] if crashes else said)


def _clock(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1000):%H:%M:%S}.{at % 1000:03}"


def _s(ms: int) -> str:
    return (
        f"{ms} ms" if ms < 100 else f"{ms / 1000:.1f} s" if ms < 60_000 else f"{ms // 60_000} min {ms // 1000 % 60} s"
    )
