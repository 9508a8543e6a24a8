"""What the bus aims at, beside what was measured."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.bus.loads import ONE_TOKEN, PACED, UNLIMITED
from bench.bus.results import Results, Row

SMOOTH_MS = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    work: str
    aim: str
    measured: str
    met: bool | None  # None: not measured, or nothing to compare with

    def verdict(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def targets(results: Results) -> list[Target]:
    return [
        _times_fastchat(results, ONE_TOKEN.name, 32, 12, "one-token requests/s", lambda row: row.requests_per_s),
        _times_fastchat(results, UNLIMITED.name, 128, 40, "streamed tokens/s, 64 each", lambda row: row.tokens_per_s),
        _smooth_streams(results),
        _first_content(results, 1, 3.0, (ONE_TOKEN.name, UNLIMITED.name)),
        _first_content(results, 256, 100.0, (ONE_TOKEN.name,)),
        _against_floor(results),
        _dispatch(results),
        _memory(results),
        _growth(results),
        _uneven(results),
    ]


def _times_fastchat(
    results: Results, load: str, concurrency: int, factor: int, what: str, figure: Callable[[Row], float]
) -> Target:
    ours, theirs = (results.row(system, load, concurrency) for system in ("tokenbus", "fastchat"))
    work, aim = f"{what}, {concurrency} clients", f"≥ {factor} × FastChat"
    if ours is None:
        return Target(work, aim, "-", None)
    if theirs is None or not figure(theirs):
        return Target(work, aim, f"{figure(ours):,.0f}; no FastChat in this run", None)
    times = figure(ours) / figure(theirs)
    return Target(work, aim, f"{figure(ours):,.0f} = {times:.1f} × {figure(theirs):,.0f}", times >= factor)


def _smooth_streams(results: Results) -> Target:
    def most(system: str) -> int | None:
        rows = [row for row in results.rows() if (row.system, row.load) == (system, PACED.name)]
        smooth = [row.concurrency for row in rows if row.gap_p99 is not None and row.gap_p99 <= SMOOTH_MS]
        return max(smooth, default=0) if rows else None

    ours, theirs = most("tokenbus"), most("fastchat")
    measured = "-" if ours is None else f"{ours}" + ("" if theirs is None else f" (FastChat {theirs})")
    return Target("streams of one chunk per 10 ms with a p99 gap ≤ 30 ms", "≥ 256", measured, _at_least(ours, 256))


def _at_least(value: float | None, bound: float) -> bool | None:
    return None if value is None else value >= bound


def _first_content(results: Results, concurrency: int, bound: float, loads: tuple[str, ...]) -> Target:
    rows = [row for load in loads if (row := results.row("tokenbus", load, concurrency))]
    found = [(row.load, row.first_p50) for row in rows if row.first_p50 is not None]
    return Target(
        f"first content p50, {concurrency} client{'s' if concurrency > 1 else ''} ({'; '.join(loads)})",
        f"≤ {bound:g} ms",
        "; ".join(f"{value:.2f} ms" for _, value in found) or "-",
        max(value for _, value in found) <= bound if found else None,
    )


def _against_floor(results: Results) -> Target:
    """Where the engine gives the pace both do the same work; without a pace each batches as it likes."""

    def ratio(load: str, concurrency: int) -> float | None:
        ours, floor = (results.row(system, load, concurrency) for system in ("tokenbus", "floor"))
        mine, least = ours and ours.total_us_per_token(), floor and floor.total_us_per_token()
        return mine / least if mine and least else None

    found = {concurrency: ratio(PACED.name, concurrency) for concurrency in (128, 256)}
    known = {concurrency: value for concurrency, value in found.items() if value is not None}
    measured = "; ".join(f"{value:.2f} × with {concurrency} clients" for concurrency, value in known.items()) or "-"
    met = max(known.values()) <= 1.4 if known else None
    return Target("CPU per streamed token (10 ms pace), all processes, against no bus", "≤ 1.4 ×", measured, met)


def _dispatch(results: Results) -> Target:
    p50 = results.dispatch.get("p50")
    measured = "-" if p50 is None else f"{p50:.3f} ms (p99 {results.dispatch['p99']:.3f})"
    return Target("pull dispatch, XADD to claim, p50", "≤ 0.5 ms", measured, None if p50 is None else p50 <= 0.5)


def _memory(results: Results) -> Target:
    idle = results.memory.get("idle_mb")
    measured = "-" if idle is None else f"{idle:.0f} MB with {results.memory['idle_streams']} streams"
    return Target("gateway memory, 1,024 idle streams", "≤ 150 MB", measured, None if idle is None else idle <= 150)


def _growth(results: Results) -> Target:
    rss = results.memory.get("rss_mb", [])
    if not rss:
        return Target("gateway memory over 100,000 requests", "flat", "-", None)
    growth, requests = rss[-1] - rss[0], results.memory["requests"]
    return Target(
        f"gateway memory over {requests:,} requests",
        "flat (≤ 5 MB)",
        f"{rss[0]:.1f} to {rss[-1]:.1f} MB ({growth:+.1f})",
        growth <= 5 if requests >= 100_000 or growth > 5 else None,
    )


def _uneven(results: Results) -> Target:
    pulled = [row for row in results.uneven if row["method"] == "pull"]
    measured = "; ".join(f"{row['ratio']:.2f} × at {row['share']:.0%} load" for row in pulled) or "-"
    met = max(row["ratio"] for row in pulled) <= 1.2 if pulled else None
    return Target(
        "4 workers, one 5 times slower, pull: p99 of the first content", "≤ 1.2 × the even case", measured, met
    )
