"""The figures as one plot, PNG and SVG: a column per load, a line per system."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from bench.bus.loads import ONE_TOKEN, PACED, UNLIMITED
from bench.bus.results import Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

# Okabe and Ito's colours, which the colour-blind tell apart; and a marker each.
STYLES: dict[str, dict[str, Any]] = {
    "tokenbus": {"color": "#0072B2", "marker": "o", "linewidth": 2.4, "zorder": 4},
    "floor": {"color": "#555555", "marker": "s", "linewidth": 1.4, "zorder": 3},
    "fastchat": {"color": "#D55E00", "marker": "^", "linewidth": 1.6, "zorder": 2},
    "litellm": {"color": "#009E73", "marker": "D", "linewidth": 1.6, "zorder": 1},
}
LABELS = {"tokenbus": "Tokenbus", "floor": "no bus at all (floor)", "fastchat": "FastChat", "litellm": "LiteLLM"}
LOAD_TITLES = {
    ONE_TOKEN.name: "One-token replies",
    UNLIMITED.name: "Streams of 64 tokens, as fast as they come",
    PACED.name: "Streams of 64 tokens, one per 10 ms",
}
Figure = Callable[[Row], float | None]


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    figure: Figure
    dashed: Figure | None = None  # a second line


def _panels(load: str) -> list[Panel | None]:
    """From top to bottom."""
    single = load == ONE_TOKEN.name
    return [
        Panel("requests/s", lambda row: row.requests_per_s)
        if single
        else Panel("tokens/s", lambda row: row.tokens_per_s),
        Panel("first content, ms", lambda row: row.first_p50, lambda row: row.first_p99),
        Panel("CPU per token, µs" if not single else "CPU per request, µs", lambda row: row.total_us_per_token()),
        None if single else Panel("gap between chunks, p99, ms", lambda row: row.gap_p99),
    ]


def draw(rows: Sequence[Row], base: Path) -> None:
    """Writes BASE.png and BASE.svg."""
    figure, axes = plt.subplots(4, 3, figsize=(13, 14), sharex=True, layout="constrained")
    for column, load in enumerate(LOAD_TITLES):
        mine = [row for row in rows if row.load == load]
        for line, panel in enumerate(_panels(load)):
            axis = axes[line][column]
            if panel is None:
                axis.set_axis_off()
                _legend(axis, rows)
            else:
                _draw_panel(axis, panel, mine)
        axes[0][column].set_title(f"{LOAD_TITLES[load]}\n", fontsize=12, fontweight="bold")
    figure.savefig(base.with_suffix(".png"), dpi=120)
    figure.savefig(base.with_suffix(".svg"))
    plt.close(figure)


def _draw_panel(axis: Any, panel: Panel, rows: Sequence[Row]) -> None:
    for system, style in STYLES.items():
        mine = sorted((row for row in rows if row.system == system), key=lambda row: row.concurrency)
        _line(axis, mine, panel.figure, **style, markersize=5)
        if panel.dashed:
            _line(axis, mine, panel.dashed, **style | {"linewidth": 1.2, "marker": ""}, linestyle=(0, (3, 2)))
    axis.set_title(panel.title, loc="left", fontsize=10)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks([1, 8, 32, 128, 256, 512, 1024], ["1", "8", "32", "128", "256", "512", "1024"])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _line(axis: Any, rows: Sequence[Row], figure: Figure, **style: Any) -> None:
    points = [(row.concurrency, value) for row in rows if (value := figure(row))]
    if points:
        axis.plot(*zip(*points, strict=True), **style)


def _legend(axis: Any, rows: Sequence[Row]) -> None:
    present = {row.system for row in rows}
    handles = [Line2D([], [], label=LABELS[name], **style) for name, style in STYLES.items() if name in present]
    handles.append(Line2D([], [], color="black", label="p50"))
    handles.append(Line2D([], [], color="black", linestyle=(0, (3, 2)), label="p99"))
    axis.legend(handles=handles, loc="center", frameon=False, fontsize=11)
