"""`python -m bench.bus`: starts every system, measures, draws, and leaves nothing behind."""

import argparse
import asyncio
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

from rich.console import Console

from bench.bus.dispatch import measure_dispatch
from bench.bus.loads import CONCURRENCY, LOADS, QUICK_CONCURRENCY
from bench.bus.matrix import Matrix
from bench.bus.measure import LoadFailed
from bench.bus.memory import measure_memory
from bench.bus.plot import draw
from bench.bus.results import Results, describe_machine
from bench.bus.scaling import QUICK_SHAPES, SHAPES, measure_scaling
from bench.bus.table import console, rows_table, scaling_table, targets_table, uneven_table
from bench.bus.targets import targets
from bench.bus.uneven import METHODS, UNEVEN_S, measure_uneven
from bench.systems import SYSTEMS, System, Unavailable, create
from bench.tokenbus import Tokenbus
from shared import __version__

FOLDER = Path(__file__).resolve().parents[1] / "results"
PARTS = ("matrix", "dispatch", "scaling", "uneven", "memory")
Say = Callable[[str], None]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.bus", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--quick", action="store_true", help="about 3 minutes: fewer points, one round")
    add("--only", type=_names(SYSTEMS), default=list(SYSTEMS), metavar="a,b", help=f"of {', '.join(SYSTEMS)}")
    add("--parts", type=_names(PARTS), default=list(PARTS), metavar="a,b", help=f"of {', '.join(PARTS)}")
    add("--rounds", type=int, help="of each point; medians are shown (3; --quick: 1)")
    add("--seconds", type=float, help="of each load (2; --quick: 1.5)")
    add("--gateways", type=int, default=1, help="of tokenbus; a port each, the clients take turns")
    add("--gateway-workers", type=int, default=1, help="processes of each gateway, behind its one port")
    add("--workers", type=int, default=1, help="of tokenbus, for each of its two models")
    add("--replot", type=Path, metavar="FILE.json", help="only show and draw again what a run has kept")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1.5 if options.quick else 2.0)
    return options


def _kept(options: argparse.Namespace) -> dict[str, int | float]:
    return {name: value for name, value in vars(options).items() if isinstance(value, int | float)}


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(known)}")
        return names

    return split


async def run(options: argparse.Namespace, results: Results, say: Say) -> None:
    _end_on_sigterm()
    async with AsyncExitStack() as stack:
        names = options.only if "matrix" in options.parts else []
        systems = [system for name in names if (system := await _start(name, options, stack, results, say))]
        concurrencies = QUICK_CONCURRENCY if options.quick else CONCURRENCY
        matrix = Matrix(systems, seconds=options.seconds, rounds=options.rounds, say=say)
        await matrix.run(LOADS, concurrencies, results.points)
    if "tokenbus" in options.only:
        await measure_ours(options, results, say)


async def measure_ours(options: argparse.Namespace, results: Results, say: Say) -> None:
    """What has no counterpart elsewhere; each with a bus of its own."""
    if "dispatch" in options.parts:
        say("dispatch")
        results.dispatch = await measure_dispatch(1000 if options.quick else 3000)
    if "scaling" in options.parts:
        for shape in QUICK_SHAPES if options.quick else SHAPES:
            results.scaling.append(await measure_scaling(shape, options.seconds, 1, say))
    if "uneven" in options.parts:
        for method in METHODS:
            results.uneven += await measure_uneven(method, UNEVEN_S, options.rounds, say)
    if "memory" in options.parts:
        results.memory = await measure_memory(10_000 if options.quick else 100_000, say)


async def _start(
    name: str, options: argparse.Namespace, stack: AsyncExitStack, results: Results, say: Say
) -> System | None:
    say(f"starting {name}")
    try:
        system = _ours(options) if name == Tokenbus.name else create(name)
        stack.push_async_callback(system.stop)
        await system.start()
        results.versions[name] = getattr(system, "version", "") or __version__
    except Unavailable as error:
        results.unavailable[name] = str(error)
        print(f"{name} is not there: {error}", file=sys.stderr)
        return None
    return system


def _ours(options: argparse.Namespace) -> Tokenbus:
    return Tokenbus(gateways=options.gateways, gateway_workers=options.gateway_workers, workers=options.workers)


def _end_on_sigterm() -> None:
    """As Ctrl-C: what was started is ended."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def show(results: Results, base: Path) -> None:
    """On stdout, and beside the kept figures."""
    out = console()
    rows = results.rows()
    if rows:
        out.print(rows_table(rows))
        out.print(results.caption(), style="dim", markup=False)
        draw(rows, base, results.caption())
    if results.scaling:
        out.print(scaling_table(results))
    if results.uneven:
        out.print(uneven_table(results))
    out.print(targets_table(targets(results)))
    for line in results.failures():
        out.print(line, markup=False)
    for name, reason in results.unavailable.items():
        out.print(f"{name} is not there: {reason}", markup=False)


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options.replot:
        show(Results.read(options.replot), options.replot.with_suffix(""))
        return 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # inherited; a gateway holds a socket per client
    results = Results(options=_kept(options), machine=describe_machine())
    try:
        return _measure(options, results)
    finally:
        _keep(results)


def _keep(results: Results) -> None:
    FOLDER.mkdir(exist_ok=True)
    base = FOLDER / f"bus-{datetime.now():%Y%m%d-%H%M%S}"
    results.save(base.with_suffix(".json"))
    show(results, base)
    drawn = " and .png, .svg" if results.points else ""
    print(f"kept in {base}.json{drawn}")


def _measure(options: argparse.Namespace, results: Results) -> int:
    """The exit code; what was measured until then is in `results`."""
    began = time.monotonic()
    shown = Console(stderr=True)
    try:
        with shown.status("") as status, asyncio.Runner() as runner:
            runner.run(run(options, results, lambda text: status.update(f"{time.monotonic() - began:4.0f} s  {text}")))
    except (KeyboardInterrupt, asyncio.CancelledError):
        shown.print("interrupted; this is what was measured until then")
        return 130
    except (LoadFailed, Unavailable) as error:
        shown.print(str(error), markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
