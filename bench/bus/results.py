"""What was measured, as it is kept in the file, and the figures that are shown of it."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROLES = ("gateway", "redis", "worker")
Shares = dict[str, float]  # by role


@dataclass(frozen=True, slots=True)
class Point:
    """One round of one load; `measured` is what the load generator said."""

    system: str
    load: str
    concurrency: int
    round: int
    measured: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of the rounds. Times in ms, CPU in us, memory in MB. None where nothing of the kind came."""

    system: str
    load: str
    concurrency: int
    requests_per_s: float
    tokens_per_s: float
    events_per_s: float
    first_p50: float | None
    first_p99: float | None
    gap_p99: float | None
    us_per_token: Shares
    us_per_request: Shares
    rss_mb: Shares
    loadgen_us_per_event: float | None
    errors: int  # of all rounds

    def total_us_per_token(self) -> float | None:
        return sum(self.us_per_token.values()) or None


@dataclass(slots=True)
class Results:
    """Everything of one run."""

    options: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)  # by system
    unavailable: dict[str, str] = field(default_factory=dict)  # system -> why
    points: list[Point] = field(default_factory=list)
    dispatch: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    uneven: list[dict[str, Any]] = field(default_factory=list)
    scaling: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "Results":
        kept = json.loads(path.read_text())
        return cls(**kept | {"points": [Point(**point) for point in kept["points"]]})

    def caption(self) -> str:
        """Of the plot and the table: where, what, and how much of the machine others had."""
        machine, options = self.machine, self.options
        others = [float(point.measured["others_cores"]) for point in self.points]
        had = f"; others used {median(others):.2f} cores (median), at most {max(others):.2f}" if others else ""
        return (
            f"{machine.get('cores')} cores for everything, load generator included{had}; "
            f"medians of {options.get('rounds')} rounds of {options.get('seconds'):g} s, interleaved; "
            + ", ".join(f"{name} {version}" for name, version in self.versions.items())
        )

    def failures(self) -> list[str]:
        """A line for each kind of error of a load: how many in all rounds, and what the first one said."""
        found: dict[tuple[str, str, int, str], tuple[int, str]] = {}
        for point in self.points:
            for kind, count in point.measured["errors"].items():
                key = (point.system, point.load, point.concurrency, kind)
                before, said = found.get(key, (0, point.measured["said"].get(kind, "")))
                found[key] = (before + count, said)
        return [
            f"{system}, {load}, {concurrency} clients: {count} × {kind} {said}".rstrip()
            for (system, load, concurrency, kind), (count, said) in found.items()
        ]

    def rows(self) -> list[Row]:
        """In the order in which they were measured."""
        rounds: dict[tuple[str, int, str], list[Point]] = {}
        for point in self.points:
            rounds.setdefault((point.load, point.concurrency, point.system), []).append(point)
        return [_row(points) for points in rounds.values()]

    def row(self, system: str, load: str, concurrency: int) -> Row | None:
        wanted = (system, load, concurrency)
        return next((row for row in self.rows() if (row.system, row.load, row.concurrency) == wanted), None)


def _row(points: Sequence[Point]) -> Row:
    all_measured = [point.measured for point in points]

    def mid(*keys: str) -> float | None:
        return middle(at(measured, *keys) for measured in all_measured)

    def shares(unit: str) -> Shares:
        found = {role: middle(_us_per(measured, role, unit) for measured in all_measured) for role in ROLES}
        return {role: value for role, value in found.items() if value is not None}

    return Row(
        system=points[0].system,
        load=points[0].load,
        concurrency=points[0].concurrency,
        requests_per_s=mid("requests_per_s") or 0.0,
        tokens_per_s=mid("tokens_per_s") or 0.0,
        events_per_s=mid("events_per_s") or 0.0,
        first_p50=mid("first_content", "p50"),
        first_p99=mid("first_content", "p99"),
        gap_p99=mid("gap", "p99"),
        us_per_token=shares("tokens"),
        us_per_request=shares("ended"),
        rss_mb={role: value for role in ROLES if (value := mid("rss_mb", role)) is not None},
        loadgen_us_per_event=middle(
            1e6 * measured["loadgen_cpu_s"] / measured["events"] for measured in all_measured if measured["events"]
        ),
        errors=sum(sum(measured["errors"].values()) for measured in all_measured),
    )


def at(measured: Any, *keys: str) -> float | None:
    for key in keys:
        measured = measured.get(key) if measured is not None else None
    return None if measured is None else float(measured)


def _us_per(measured: dict[str, Any], role: str, unit: str) -> float | None:
    used = measured["cpu_s"].get(role)
    return 1e6 * used / measured[unit] if used is not None and measured[unit] else None


def middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def describe_machine() -> dict[str, Any]:
    return {
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": [round(value, 2) for value in psutil.getloadavg()],
    }
