"""From a `kill -9` of a worker to the next token of each stream that it held, as the clients saw it."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from tests.fault.chaos.faults import Fault

LATE = 8  # tokens that were on their way when their worker died


def waits(faults: Sequence[Fault], arrivals: Mapping[str, Sequence[float]], *, undisturbed: bool) -> list[float]:
    """In s, sorted. `undisturbed`: only where no other fault began before that token."""
    found = []
    for i, fault in enumerate(faults):
        next_at = faults[i + 1].at if i + 1 < len(faults) else float("inf")
        for job in fault.jobs:
            token_at = _next_token(arrivals.get(job, ()), fault.at)
            if token_at is not None and not (undisturbed and token_at > next_at):
                found.append(token_at - fault.at)
    return sorted(found)


def _next_token(times: Sequence[float], killed_at: float) -> float | None:
    """The one after the longest gap hereabouts: those before it had left the worker already. None for a stream that had
    not begun, or did not go on."""
    first = bisect_right(times, killed_at)
    after = range(first, min(first + LATE, len(times)))
    if first == 0 or not after:
        return None
    return times[max(after, key=lambda i: times[i] - times[i - 1])]


def percentile(sorted_values: Sequence[float], share: float) -> float:
    return sorted_values[min(int(share * len(sorted_values)), len(sorted_values) - 1)]
