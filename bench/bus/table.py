"""The figures as one table, and what was aimed at as another."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.bus.results import ROLES, Results, Row, Shares
from bench.bus.targets import Target

WIDE = 190  # columns; a narrower terminal breaks lines, which loses less than cells that are cut


def console() -> Console:
    """On stdout."""
    return Console(width=max(WIDE, Console().width))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)


def rows_table(rows: Sequence[Row]) -> Table:
    table = _table("The bus: medians of the rounds; ms, µs of CPU, MB")
    table.add_column("load", no_wrap=True)
    table.add_column("clients", justify="right", no_wrap=True)
    table.add_column("system", no_wrap=True)
    for title in ("req/s", "tok/s", "events/s", "first p50", "first p99", "gap p99"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("µs/token g+r+w", "µs/request g+r+w", "MB g+r+w", "err"):
        table.add_column(title, justify="right", no_wrap=True)
    for before, row in zip([None, *rows], rows, strict=False):
        if before and (before.load, before.concurrency) != (row.load, row.concurrency):
            table.add_section()
        table.add_row(*_cells(row), style="bold" if row.system == "tokenbus" else "")
    table.caption = "g+r+w: gateway, redis, worker; of a peer, its own processes in these roles"
    table.caption_justify = "left"
    return table


def _cells(row: Row) -> list[str]:
    return [
        row.load,
        str(row.concurrency),
        row.system,
        number(row.requests_per_s),
        number(row.tokens_per_s),
        number(row.events_per_s),
        number(row.first_p50),
        number(row.first_p99),
        number(row.gap_p99),
        parts(row.us_per_token),
        parts(row.us_per_request),
        parts(row.rss_mb, whole=True),
        str(row.errors or ""),
    ]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def parts(shares: Shares, *, whole: bool = False) -> str:
    """`65+11+47 = 123`."""
    if not shares:
        return "-"
    spell = (lambda value: f"{value:.0f}") if whole else _short
    known = [shares[role] for role in ROLES if role in shares]
    if len(known) == 1:
        return spell(known[0])
    return f"{'+'.join(map(spell, known))} = {spell(sum(known))}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def targets_table(targets: Sequence[Target]) -> Table:
    table = _table("What was aimed at")
    table.add_column("work", max_width=64)
    table.add_column("target", no_wrap=True)
    table.add_column("measured", max_width=70)
    table.add_column("", no_wrap=True)
    colours = {"met": "green", "missed": "red"}
    for target in targets:
        verdict = target.verdict()
        table.add_row(target.work, target.aim, target.measured, f"[{colours.get(verdict, 'dim')}]{verdict}[/]")
    return table


def scaling_table(results: Results) -> Table:
    table = _table("Scaling: 128 clients, echo workers without a pace")
    for title in ("gateways", "workers", "req/s, one token", "cores g+r+w", "tokens/s, 64 each", "cores g+r+w"):
        table.add_column(title, justify="right")
    for row in results.scaling:
        table.add_row(
            str(row["gateways"]),
            str(row["workers"]),
            number(row["one_token"]["requests_per_s"]),
            _cores(row["one_token"]["cores"]),
            number(row["stream"]["tokens_per_s"]),
            _cores(row["stream"]["cores"]),
        )
    return table


def _cores(cores: Shares) -> str:
    return "+".join(f"{cores[role]:.2f}" for role in ROLES if role in cores)


def uneven_table(results: Results) -> Table:
    table = _table("Uneven workers: first content, ms")
    table.add_column("dispatch")
    for title in ("load", "req/s", "even p50", "even p99", "uneven p50", "uneven p99", "p99 ratio"):
        table.add_column(title, justify="right")
    table.add_column("where the uneven set's slowest lost it", max_width=64)
    for row in results.uneven:
        even, uneven = row["even"], row["uneven"]
        table.add_row(
            row["method"],
            f"{row['share']:.0%}",
            number(row["rate"]),
            number(even["p50"]),
            number(even["p99"]),
            number(uneven["p50"]),
            number(uneven["p99"]),
            f"{row['ratio']:.2f}",
            row["limit"],
        )
    return table
