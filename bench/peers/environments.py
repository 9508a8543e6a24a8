"""A virtual environment per peer, made once: their requirements contradict ours and each other's."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bench.systems import Unavailable

PLACE = Path(__file__).resolve().parents[2] / ".bench"  # for environments and logs; git ignores it


async def python_of(name: str, requirements: Sequence[str], module: str) -> Path:
    """The Python of the peer's environment. `module` must be importable there, or it is not kept. Remove the folder to
    have it made again. Raises Unavailable; pip's words are in the log beside the folder."""
    folder = PLACE / name
    python = folder / "bin" / "python"
    if python.exists():  # not where it links to a Python that is gone
        return python
    PLACE.mkdir(exist_ok=True)
    log = PLACE / f"{name}.install.log"
    # Made under another name, so that what was interrupted is never taken for a whole one.
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=PLACE) as making, log.open("wb") as output:
        made = Path(making) / name
        inside = str(made / "bin" / "python")
        if not (
            await _succeeds([sys.executable, "-m", "venv", str(made)], output, making)
            and await _succeeds([inside, "-m", "pip", "install", *requirements], output, making)
            and await _succeeds([inside, "-c", f"import {module}"], output, making)
        ):
            raise Unavailable(f"{name} cannot be installed with Python {sys.version.split()[0]}; see {log}")
        _put_in_place(made, folder)
    return python


async def version_of(python: Path, package: str) -> str:
    ask = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    process = await asyncio.create_subprocess_exec(python, "-c", ask, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip()


async def _succeeds(command: Sequence[str], output: IO[bytes], folder: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=output, stderr=output, cwd=folder, start_new_session=True
    )
    try:
        return await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # or what was cancelled would write into what is being removed
        await process.wait()


def _put_in_place(made: Path, folder: Path) -> None:
    """Moves well: it is used as `bin/python -m` only, and its scripts, which name their folder, are not."""
    if folder.exists():
        os.rename(folder, made.with_suffix(".old"))
    os.rename(made, folder)
