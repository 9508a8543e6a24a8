"""A short chaos run with every kind of fault; `make chaos` is the long one."""

from pathlib import Path

from rich.console import Console

from tests.fault.chaos.ledger import VIOLATIONS
from tests.fault.chaos.run import Options, run
from tests.fault.chaos.verdict import Verdict

OPTIONS = Options(requests=300, seed=3, concurrency=32, patience=90, pause=(0.8, 2.5))
KINDS_OF_FAULT = 11


async def test_nothing_accepted_is_lost_among_kills_pauses_cuts_poison_and_clients_that_leave(tmp_path: Path) -> None:
    report = await run(OPTIONS, tmp_path)
    report.print(Console())
    counts = report.ledger.counts
    assert report.violations == []
    assert {name: counts[name] for name in VIOLATIONS} == dict.fromkeys(VIOLATIONS, 0)
    assert len({fault.kind for fault in report.faults}) == KINDS_OF_FAULT
    assert counts[Verdict.BURIED.value] == 1
    ended = counts[Verdict.FINISHED.value] + counts[Verdict.LEFT.value] + counts[Verdict.BURIED.value]
    assert ended == counts["requests"] >= OPTIONS.requests
