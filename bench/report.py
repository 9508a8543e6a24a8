"""What a load was: from each request's times to rates over the window, percentiles and errors by kind."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.usage import Meter, machine_cpu_s

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
CUT = "cut"  # still open long after the end; no error, and its times are at least what they were then


class Sample(NamedTuple):
    """One request; `arrivals` are (time, events with content) of each read that brought any."""

    started: float
    ended: float
    arrivals: list[tuple[float, int]]
    tokens: int | None  # by its usage
    failure: tuple[str, str] | None


class Window:
    """The steady part of a load, and what the processes used in it."""

    def __init__(self) -> None:
        self.begins = self.ends = 0.0
        self.cpu_s: dict[str, float] = {}
        self.rss_mb: dict[str, float] = {}
        self.own_cpu_s = 0.0
        self.machine_cpu_s = 0.0

    def begin(self, at: float, meter: Meter, own_cpu_s: float) -> None:
        self.begins, self.cpu_s, self.own_cpu_s = at, meter.cpu_s(), own_cpu_s
        self.machine_cpu_s = machine_cpu_s()

    def end(self, at: float, meter: Meter, own_cpu_s: float) -> None:
        self.ends, self.own_cpu_s = at, own_cpu_s - self.own_cpu_s
        self.machine_cpu_s = machine_cpu_s() - self.machine_cpu_s
        self.cpu_s = {role: used - self.cpu_s[role] for role, used in meter.cpu_s().items()}
        self.rss_mb = meter.rss_mb()

    @property
    def seconds(self) -> float:
        return self.ends - self.begins

    @property
    def others_cores(self) -> float:
        """What the rest of the machine used: noise."""
        return max(0.0, self.machine_cpu_s - self.own_cpu_s - sum(self.cpu_s.values())) / self.seconds

    def holds(self, at: float) -> bool:
        return self.begins <= at < self.ends


def summarise(samples: Sequence[Sample], refused: Counter[str], window: Window) -> dict[str, Any]:
    """Rates per s, times in ms, CPU in s, memory in MB.

    Times are of the requests that were open within the window, to their very end: who waits longer than the window
    is long has not got away.
    """
    seen = [sample for sample in samples if sample.started < window.ends and sample.ended >= window.begins]
    good = [sample for sample in seen if sample.failure is None or sample.failure[0] == CUT]
    ended = sum(window.holds(sample.ended) for sample in good)
    events = tokens = 0.0
    for sample in samples:
        mine = sum(count for at, count in sample.arrivals if window.holds(at))
        events += mine
        tokens += mine * _tokens_per_event(sample)
    errors = refused + Counter(sample.failure[0] for sample in seen if sample.failure)
    cut = errors.pop(CUT, 0)
    first = [at - sample.started for sample in good if (at := _first_content(sample)) >= window.begins]
    return {
        "seconds": window.seconds,
        "requests": len(seen),
        "ended": ended,
        "requests_per_s": ended / window.seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / window.seconds,
        "events": events,
        "events_per_s": events / window.seconds,
        "first_content": times(first),
        "gap": times(_gaps(good, window)),
        "latency": times([sample.ended - sample.started for sample in good if sample.ended >= window.begins]),
        "cut": cut,
        "errors": dict(errors),
        "said": _first_of_each_failure(seen),
        "cpu_s": window.cpu_s,
        "rss_mb": window.rss_mb,
        "loadgen_cpu_s": window.own_cpu_s,
        "others_cores": window.others_cores,
    }


def _first_content(sample: Sample) -> float:
    return sample.arrivals[0][0] if sample.arrivals else sample.ended


def _tokens_per_event(sample: Sample) -> float:
    """A server may put several tokens into an event; only its usage tells."""
    events = sum(count for _, count in sample.arrivals)
    return sample.tokens / events if sample.tokens and events else 1.0


def _gaps(samples: Sequence[Sample], window: Window) -> list[float]:
    return [
        later - earlier
        for sample in samples
        for (earlier, _), (later, _) in zip(sample.arrivals, sample.arrivals[1:], strict=False)
        if later >= window.begins
    ]


def _first_of_each_failure(samples: Sequence[Sample]) -> dict[str, str]:
    failures = [sample.failure for sample in samples if sample.failure and sample.failure[0] != CUT]
    return dict(reversed(failures))


def times(seconds: Sequence[float]) -> Mapping[str, float | None]:
    """In ms."""
    ordered = sorted(seconds)
    named = {name: percentile(ordered, share) for name, share in PERCENTILES.items()}
    return {name: None if value is None else round(1000 * value, 4) for name, value in named.items()}


def percentile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[round(share * (len(ordered) - 1))] if ordered else None
