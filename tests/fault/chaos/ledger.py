"""What a run counts, and the violations by which it fails."""

from collections import Counter
from dataclasses import dataclass, field

# Each of these must not happen at all.
VIOLATIONS = (
    "silent end",
    "duplicated token",
    "wrong text",
    "wrong finish or usage",
    "error event (other)",
    "wrong refusal",
    "leaked key",
    "leaked slot",
    "memory",
    "ended by itself",
)


@dataclass(slots=True)
class Ledger:
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)  # one line each

    def count(self, what: str, times: int = 1) -> None:
        self.counts[what] += times

    def violate(self, kind: str, line: str, times: int = 1) -> None:
        assert kind in VIOLATIONS
        self.counts[kind] += times
        self.violations.append(f"{kind}: {line}")
