"""The figures as one plot, PNG and SVG: a column per load, a line per system."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from bench.bus.loads import ONE_TOKEN, PACED, UNLIMITED
from bench.bus.results import Row
from bench.bus.targets import SMOOTH_MS

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's colours, which the colour-blind tell apart; and a marker each.
STYLES: dict[str, dict[str, Any]] = {
    "tokenbus": {"color": "#0072B2", "marker": "o", "linewidth": 2.4, "zorder": 4},
    "floor": {"color": "#555555", "marker": "s", "linewidth": 1.4, "zorder": 3},
    "fastchat": {"color": "#D55E00", "marker": "^", "linewidth": 1.6, "zorder": 2},
    "litellm": {"color": "#009E73", "marker": "D", "linewidth": 1.6, "zorder": 1},
}
LABELS = {
    "tokenbus": "Tokenbus",
    "floor": "the same server, no bus (floor)",
    "fastchat": "FastChat",
    "litellm": "LiteLLM",
}
LOAD_TITLES = {
    ONE_TOKEN.name: "One-token replies",
    UNLIMITED.name: "Streams of 64 tokens, as fast as they come",
    PACED.name: "Streams of 64 tokens, one per 10 ms",
}
Figure = Callable[[Row], float | None]


P99_DASHES = (0, (3, 2))
TICKS = (1, 8, 32, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    figure: Figure
    dashed: Figure | None = None  # a second line
    limit: float | None = None  # that is aimed at


def _panels(load: str) -> list[Panel]:
    """From top to bottom."""
    single, paced = load == ONE_TOKEN.name, load == PACED.name
    gap = Panel("gap between chunks, p99, ms ↓", lambda row: row.gap_p99, limit=SMOOTH_MS if paced else None)
    memory = Panel("memory of all its processes, MB ↓", lambda row: sum(row.rss_mb.values()))
    return [
        Panel("requests/s ↑" if single else "tokens/s ↑", lambda row: row.tokens_per_s),
        Panel("first content, p50 and p99, ms ↓", lambda row: row.first_p50, lambda row: row.first_p99),
        Panel(f"CPU per {'request' if single else 'token'}, µs ↓", lambda row: row.total_us_per_token()),
        memory if single else gap,
    ]


def draw(rows: Sequence[Row], base: Path, caption: str) -> None:
    """Writes BASE.png and BASE.svg."""
    figure, axes = plt.subplots(4, 3, figsize=(14, 13), sharex=True, layout="constrained")
    for column, (load, title) in enumerate(LOAD_TITLES.items()):
        mine = [row for row in rows if row.load == load]
        for line, panel in enumerate(_panels(load)):
            _draw_panel(axes[line][column], panel, mine)
        axes[0][column].set_title(title, fontsize=12, fontweight="bold", pad=24)
        axes[-1][column].set_xlabel("clients at once")
    figure.legend(handles=_handles(rows), loc="outside upper center", ncols=6, frameon=False, fontsize=11)
    figure.supxlabel(caption, fontsize=9, color="#555555")
    figure.savefig(base.with_suffix(".png"), dpi=110)
    figure.savefig(base.with_suffix(".svg"))
    plt.close(figure)


def _draw_panel(axis: Any, panel: Panel, rows: Sequence[Row]) -> None:
    for system, style in STYLES.items():
        mine = sorted((row for row in rows if row.system == system), key=lambda row: row.concurrency)
        _line(axis, mine, panel.figure, **style, markersize=5)
        if panel.dashed:
            _line(axis, mine, panel.dashed, **style | {"linewidth": 1.1, "marker": ""}, linestyle=P99_DASHES)
    if panel.limit:
        axis.axhline(panel.limit, color="black", linewidth=0.8, linestyle=":")
        axis.annotate(f"{panel.limit:g} ms", (1, panel.limit), textcoords="offset points", xytext=(0, 3), fontsize=8)
    axis.text(0, 1.03, panel.title, transform=axis.transAxes, fontsize=10)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(TICKS, [str(tick) for tick in TICKS], fontsize=8)
    axis.tick_params(labelbottom=True)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(True, which="major", color="#e4e4e4", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _line(axis: Any, rows: Sequence[Row], figure: Figure, **style: Any) -> None:
    points = [(row.concurrency, value) for row in rows if (value := figure(row))]
    if points:
        axis.plot(*zip(*points, strict=True), **style)


def _handles(rows: Sequence[Row]) -> list[Line2D]:
    present = {row.system for row in rows}
    systems = [Line2D([], [], label=LABELS[name], **style) for name, style in STYLES.items() if name in present]
    return [
        *systems,
        Line2D([], [], color="black", label="p50, or as the title says"),
        Line2D([], [], color="black", linewidth=1.1, linestyle=P99_DASHES, label="p99"),
    ]
