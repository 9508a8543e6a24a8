"""What was measured of an engine: as JSON, as a table, as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

OURS = "tokenbus"
ALONE = "generate"
PEERS_MODEL = "qwen2.5-7b"
# On an H100, with 128 tokens in and out: vLLM on the same machine as ours, the others elsewhere.
PEERS = {
    "vLLM 0.25": {1: 161.0, 16: 2380.0, 64: 7645.0, 256: 16176.0},
    "transformers' continuous batching": {1: 33.0, 256: 2008.0},
    "one request at a time": {1: 32.0},
}
# Okabe and Ito's colours, which the colour-blind tell apart.
STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": "#0072B2", "linewidth": 2.4},
    ALONE: {"color": "#D55E00", "linewidth": 1.4},
    "vLLM 0.25": {"color": "#009E73", "linewidth": 1.4},
    "transformers' continuous batching": {"color": "#CC79A7", "linewidth": 1.4},
    "one request at a time": {"color": "#D55E00", "linewidth": 1.4},
}


class Figure(msgspec.Struct, frozen=True):
    """Tokens per second of so many streams, each with so many tokens in and out."""

    engine: str
    streams: int
    prompt: int
    output: int
    tokens_per_s: float
    longest_step_ms: float = 0.0


class Results(msgspec.Struct, frozen=True):
    machine: str
    model: str
    figures: list[Figure]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)))

    @classmethod
    def read(cls, path: Path) -> "Results":
        return msgspec.json.decode(path.read_bytes(), type=cls)


def show(results: Results) -> None:
    """On stdout."""
    table = Table(title=f"{results.model}, {results.machine}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("engine", "streams", "in", "out", "tokens/s", "times", "longest step, ms"):
        table.add_column(title, justify="left" if title == "engine" else "right", no_wrap=True)
    alone = {(one.prompt, one.output): one.tokens_per_s for one in results.figures if one.engine != OURS}
    for one in results.figures:
        base = alone.get((one.prompt, one.output))
        times = f"{one.tokens_per_s / base:.2f}" if base and one.engine == OURS else ""
        step = f"{one.longest_step_ms:.0f}" if one.longest_step_ms else ""
        sizes = str(one.streams), str(one.prompt), str(one.output)
        table.add_row(one.engine, *sizes, f"{one.tokens_per_s:,.1f}", times, step)
    Console().print(table)


def draw(several: Sequence[Results], path: Path) -> None:
    """A column for each machine; what is known of others beside the one whose model is the same."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, axes = plt.subplots(1, len(several), figsize=(6.5 * len(several), 5), layout="constrained", squeeze=False)
    for axis, results in zip(axes[0], several, strict=True):
        lines = _lines(results)
        for name, line in lines.items():
            if name == ALONE:
                axis.axhline(line[1], label=f"{name}, one request at a time", **STYLES[name])
            else:
                axis.plot(list(line), list(line.values()), marker="o", label=name, **_style(name))
        axis.set(xscale="log", yscale="log", xlabel="streams at once", ylabel="tokens/s ↑")
        ticks = sorted({streams for line in lines.values() for streams in line})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_title(f"{results.model}, 128 tokens in and out\n{results.machine}", fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def _lines(results: Results) -> dict[str, dict[int, float]]:
    lines: dict[str, dict[int, float]] = {}
    for one in results.figures:
        name = one.engine if one.prompt == 128 else f"{one.engine}, {one.prompt:,} in"
        lines.setdefault(name, {})[one.streams] = one.tokens_per_s
    return lines | (PEERS if results.model == PEERS_MODEL else {})


def _style(name: str) -> dict[str, Any]:
    return STYLES.get(name, STYLES[OURS] | {"linestyle": "--", "linewidth": 1.6})
