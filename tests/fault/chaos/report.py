"""The table at the end of a run, and a line for each violation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tests.fault.chaos.faults import Fault
from tests.fault.chaos.ledger import VIOLATIONS, Ledger
from tests.fault.chaos.recovery import percentile
from tests.fault.chaos.stack import POISONED
from tests.fault.chaos.verdict import Verdict

OUTCOMES = (
    "requests",
    "accepted",
    Verdict.FINISHED.value,
    Verdict.LEFT.value,
    Verdict.CUT.value,
    "cut, and finished elsewhere",
    Verdict.BURIED.value,
)
SHOWN_VIOLATIONS = 60
POISONED_EXIT = f"worker {POISONED}"


@dataclass(slots=True)
class Report:
    seed: int
    ledger: Ledger
    seconds: float = 0.0
    faults: Sequence[Fault] = ()
    waits: Mapping[str, Sequence[float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory_mb: Mapping[str, float] = field(default_factory=dict)
    exits: Mapping[str, int] = field(default_factory=dict)

    @property
    def violations(self) -> list[str]:
        return self.ledger.violations

    def print(self, console: Console) -> None:
        console.print(self._table())
        for line in self.violations[:SHOWN_VIOLATIONS]:
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        if more := len(self.violations) - SHOWN_VIOLATIONS:
            console.print(f"... and {more} more", style="red") if more > 0 else None
        if self.violations:
            console.print(f"failed with seed {self.seed}", style="bold red")

    def _table(self) -> Table:
        table = Table("", "", title=f"chaos, seed {self.seed}", show_header=False, title_justify="left")
        counts = self.ledger.counts
        table.add_row("seconds", f"{self.seconds:.0f}")
        for name in OUTCOMES:
            table.add_row(name, str(counts[name]))
        for name in sorted(name for name in counts if name.startswith("sent again: ")):
            table.add_row(name, str(counts[name]))
        table.add_section()
        for name in VIOLATIONS:
            table.add_row(name, str(counts[name]), style="red" if counts[name] else "green")
        table.add_section()
        for kind, count in sorted(Counter(fault.kind for fault in self.faults).items()):
            table.add_row(f"fault: {kind}", str(count))
        table.add_section()
        for name, values in self.waits.items():
            table.add_row(f"kill -9 to next token, {name}", _spread(values))
        for sample, value in sorted(self.metrics.items()):
            table.add_row(sample, f"{value:g}")
        for name, value in self.memory_mb.items():
            table.add_row(f"memory of the largest {name}", f"{value:.0f} MB")
        for name, count in sorted(self.exits.items()):
            table.add_row(f"exits: {name}", str(count))
        if buried := counts[Verdict.BURIED.value]:
            table.add_row("workers lost to each poison request", f"{self.exits.get(POISONED_EXIT, 0) / buried:.1f}")
        return table


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "no stream"
    p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, max {values[-1]:.2f} s ({len(values)} streams)"
