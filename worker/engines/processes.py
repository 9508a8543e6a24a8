"""The processes that an engine may be made of: they hear one order to end, and none outlives the others."""

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker, spawn
from typing import Any, NoReturn

import psutil

from shared.logging import get_logger

LOOK_EVERY_S = 0.5

log = get_logger(__name__)


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started here hear no order to end: it is for the first, which may have streams to hand over,
    and takes them with it."""
    resource_tracker.ensure_running()  # it would be started meanwhile, and is to end with the first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with(pid: int) -> None:
    """This process, when that one does: from a thread, so that it may be in the middle of anything."""

    def watch() -> None:
        if sys.platform == "linux":
            with suppress(ProcessLookupError):
                select.select([os.pidfd_open(pid)], [], [])
        else:
            while psutil.pid_exists(pid):
                time.sleep(LOOK_EVERY_S)
        os._exit(0)

    threading.Thread(target=watch, name="end-with", daemon=True).start()


def bind(pid: int) -> None:
    """Whatever multiprocessing spawns here from now on ends with process `pid`, from its first moment on, and what is
    spawned there too. Idempotent."""
    if hasattr(spawn.get_command_line, "bound"):
        return
    usual = spawn.get_command_line

    def command_line(**handles: Any) -> list[str]:
        *words, program, mark = usual(**handles)
        first = f"from worker.engines import processes as ours; ours.end_with({pid}); ours.bind({pid}); "
        return [*words, first + program, mark]

    command_line.bound = True  # type: ignore[attr-defined]
    spawn.get_command_line = command_line


def end(why: str) -> NoReturn:
    """Of all processes: the others see that this one is gone. What it was computing goes on at other workers."""
    log.critical("%s", why)
    logging.shutdown()
    os._exit(1)
