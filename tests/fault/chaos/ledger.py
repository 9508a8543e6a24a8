"""What a run counts, and the violations by which it fails."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

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
    "not back in time",
)


@dataclass(slots=True)
class Ledger:
    """`journal` is a file with the time of each fault, exit and violation, to lay beside the logs of the processes."""

    journal: Path
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)  # one line each

    def count(self, what: str, times: int = 1) -> None:
        self.counts[what] += times

    def violate(self, kind: str, line: str, times: int = 1) -> None:
        assert kind in VIOLATIONS
        self.counts[kind] += times
        self.violations.append(f"{kind}: {line}")
        self.note(self.violations[-1])

    def note(self, line: str) -> None:
        with self.journal.open("a") as journal:
            journal.write(f"{time.strftime('%H:%M:%S')} {line}\n")
