"""`python -m bench.bus`: starts every system, measures, draws, and leaves nothing behind."""

import argparse
import asyncio
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

from rich.console import Console

from bench.bus.loads import CONCURRENCY, LOADS, QUICK_CONCURRENCY
from bench.bus.matrix import Matrix
from bench.bus.measure import LoadFailed
from bench.bus.plot import draw
from bench.bus.results import Results, describe_machine
from bench.bus.table import console, rows_table, scaling_table, targets_table, uneven_table
from bench.bus.targets import targets
from bench.systems import SYSTEMS, System, Unavailable, create

FOLDER = Path(__file__).resolve().parents[1] / "results"
Say = Callable[[str], None]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.bus", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--quick", action="store_true", help="about 3 minutes: fewer points, one round")
    add("--only", type=_names(SYSTEMS), default=list(SYSTEMS), metavar="a,b", help=f"of {', '.join(SYSTEMS)}")
    add("--rounds", type=int, help="of each point; medians are shown (3; --quick: 1)")
    add("--seconds", type=float, help="of each load (2.5; --quick: 1.5)")
    add("--replot", type=Path, metavar="FILE.json", help="only show and draw again what a run has kept")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1.5 if options.quick else 2.5)
    return options


def _names(known: Sequence[str] | dict[str, str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(known)}")
        return names

    return split


async def run(options: argparse.Namespace, results: Results, say: Say) -> None:
    _end_on_sigterm()
    async with AsyncExitStack() as stack:
        systems = [system for name in options.only if (system := await _start(name, stack, results, say))]
        concurrencies = QUICK_CONCURRENCY if options.quick else CONCURRENCY
        matrix = Matrix(systems, seconds=options.seconds, rounds=options.rounds, say=say)
        await matrix.run(LOADS, concurrencies, results.points)


async def _start(name: str, stack: AsyncExitStack, results: Results, say: Say) -> System | None:
    say(f"starting {name}")
    try:
        system = create(name)
        stack.push_async_callback(system.stop)
        await system.start()
    except Unavailable as error:
        results.unavailable[name] = str(error)
        print(f"{name} is not there: {error}", file=sys.stderr)
        return None
    return system


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
        draw(rows, base)
    if results.scaling:
        out.print(scaling_table(results))
    if results.uneven:
        out.print(uneven_table(results))
    out.print(targets_table(targets(results)))
    for name, reason in results.unavailable.items():
        out.print(f"{name} is not there: {reason}", markup=False)


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options.replot:
        show(Results.read(options.replot), options.replot.with_suffix(""))
        return 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # inherited; a gateway holds a socket per client
    results = Results(options={"rounds": options.rounds, "seconds": options.seconds}, machine=describe_machine())
    code = _measure(options, results)
    FOLDER.mkdir(exist_ok=True)
    base = FOLDER / f"bus-{datetime.now():%Y%m%d-%H%M%S}"
    results.save(base.with_suffix(".json"))
    show(results, base)
    print(f"kept in {base}.json, .png and .svg")
    return code


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
    except LoadFailed as error:
        shown.print(str(error), markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
