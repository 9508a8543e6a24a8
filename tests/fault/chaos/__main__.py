"""`python -m tests.fault.chaos --requests 5000 --seed 7`: exit code 0 if nothing accepted was lost, else 1."""

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.fault.chaos.report import Report
from tests.fault.chaos.run import Options, run


def read_options() -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m tests.fault.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one, which is printed")
    parser.add_argument("--concurrency", type=int, default=64, help="clients at a time")
    parser.add_argument("--only", default="", help="kinds of faults, as in the table: 'kill worker,kill redis'")
    parser.add_argument("--keep", type=Path, default=None, help="an empty folder for logs and data; default: none stay")
    given = parser.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    only = tuple(kind.strip() for kind in given.only.split(",") if kind.strip())
    return Options(requests=given.requests, seed=seed, concurrency=given.concurrency, only=only), given.keep


async def until_told(options: Options, folder: Path) -> Report:
    """SIGTERM ends everything as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(options, folder)


def main() -> int:
    options, keep = read_options()
    console = Console()
    console.print(f"seed {options.seed}, {options.requests} requests", highlight=False)
    with tempfile.TemporaryDirectory(prefix="tokenbus-chaos-") as temporary:
        try:
            report = asyncio.run(until_told(options, keep or Path(temporary)))
        except (KeyboardInterrupt, asyncio.CancelledError):
            console.print("stopped")
            return 130
    report.print(console)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
