"""One load on one system, from the load generator in a process of its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from bench.usage import with_children

WARMUP_S = 0.5
PATIENCE_S = 12.0  # for who is slow to answer
DRAIN_S = 10.0


class LoadFailed(Exception):
    """The load generator itself failed; the text is what it said."""


async def measure(
    url: str,
    model: str,
    processes: Mapping[Any, Sequence[int]],
    *flags: str,
    seconds: float = 0,
    drain: float = DRAIN_S,
) -> dict[str, Any]:
    """What `bench.report.summarise` says, of `seconds` after a warm-up or, without it, of what the flags say."""
    meter = json.dumps({role: with_children(pids) for role, pids in processes.items()})
    command = ["bench.loadgen", "--base-url", url, "--model", model, "--meter", meter, "--drain", f"{drain:g}", *flags]
    if seconds:
        command += ["--seconds", f"{seconds:g}", "--warmup", f"{WARMUP_S:g}", "--patience", f"{PATIENCE_S:g}"]
    return dict(json.loads(await run_module(*command)))


async def run_module(module: str, *flags: str) -> bytes:
    """The stdout of `python -m`; the process ends with us. Raises LoadFailed."""
    process = await start_module(module, *flags)
    try:
        output, said = await process.communicate()
    finally:
        await end(process)
    if process.returncode:
        raise LoadFailed(f"{module}: {said.decode(errors='replace')[-1500:]}")
    return output


async def start_module(module: str, *flags: str) -> asyncio.subprocess.Process:
    """Away from the terminal, whose Ctrl-C is ours; and it cannot outlive us."""
    tether = ("-m", "shared.tether", str(os.getpid()), str(int(signal.SIGKILL)))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *tether, sys.executable, "-m", module, *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
