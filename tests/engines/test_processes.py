"""Processes that belong to one another end with the first of them."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_until
from tests.processes import is_alive

FAMILY = """
import multiprocessing, os, sys, time
from worker.engines.processes import bind

def live(generations):
    if generations:
        multiprocessing.get_context("spawn").Process(target=live, args=(generations - 1,)).start()
    time.sleep(60)

if __name__ == "__main__":
    bind(os.getpid())
    bind(os.getpid())
    live(2)
"""


@pytest.mark.parametrize("generations", [1, 2])  # the last of them was just spawned, and has imported nothing yet
async def test_what_is_spawned_ends_with_the_first_whenever_that_is_killed(tmp_path: Path, generations: int) -> None:
    (tmp_path / "family.py").write_text(FAMILY)
    first = subprocess.Popen([sys.executable, "-P", str(tmp_path / "family.py")])  # noqa: ASYNC220
    family = psutil.Process(first.pid)

    def spawned() -> list[psutil.Process]:
        return [one for one in family.children(recursive=True) if "spawn_main" in " ".join(one.cmdline())]

    await wait_until(lambda: len(spawned()) == generations, description=f"{generations} generations")
    others = family.children(recursive=True)
    first.kill()
    first.wait()
    await wait_until(lambda: not any(map(is_alive, others)), description="all have ended")
