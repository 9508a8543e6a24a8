"""The parent of several gateway processes: starts one for each listening socket, replaces what dies, ends all of them.

Children lead process groups of their own, so that a terminal's Ctrl-C reaches the parent alone; it passes the word on.
"""

import asyncio
import pickle
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client.multiprocess import mark_process_dead

from gateway.orders import READY, Orders
from gateway.settings import GatewaySettings
from shared.errors import StartupError
from shared.logging import get_logger

log = get_logger("gateway")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0  # new connections of a place that is empty wait as long
STEADY_S = 10.0  # a child that lived so long is replaced at once
OVERDUE_S = 15.0  # after the drain: a child that has not ended by then hangs
CANNOT_START = 2  # exit code


class Place:
    """One listening socket, and the process that accepts from it: the first one or a successor."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.ready = False
        self.last_words = ""
        self._leaves = False
        self._process: asyncio.subprocess.Process | None = None

    async def run_once(self) -> int:
        """From the start of a process to its end; returns its exit code."""
        self.ready, self.last_words = False, ""
        python = (sys.executable, "-P") if sys.flags.safe_path else (sys.executable,)
        self._process = process = await asyncio.create_subprocess_exec(
            *python,
            *("-m", "gateway.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self.orders.listener],
            process_group=0,
        )
        if self._leaves:  # it was told so while the process was being made
            process.terminate()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps(self.orders))  # and stays open: its end is that of this parent
        async for line in process.stdout:
            if line == READY:
                self.ready = True
            else:
                self.last_words = line.decode(errors="replace").strip()
        code = await process.wait()
        self.ready = False
        mark_process_dead(self.orders.number, str(self.orders.metrics))  # type: ignore[no-untyped-call]
        return code

    def leave(self, number: signal.Signals) -> None:
        self._leaves = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


class Supervisor:
    def __init__(self, settings: GatewaySettings, listeners: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._listeners = listeners
        self._places: list[Place] = []
        self._leaving = asyncio.Event()
        self._failure: StartupError | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, and until all have drained. Raises StartupError once for all that cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave, number)
        with _folder() as metrics:
            await self._keep_all(Path(metrics))
        if self._failure is not None:
            raise self._failure

    async def _keep_all(self, metrics: Path) -> None:
        share = self._settings.share()
        for number, listener in enumerate(self._listeners):
            self._places.append(Place(Orders(share, number, listener.fileno(), metrics)))
        async with asyncio.TaskGroup() as tasks:
            for place in self._places:
                tasks.create_task(self._keep(place), name=f"process {place.orders.number}")

    async def _keep(self, place: Place) -> None:
        """Until all leave: who dies is replaced, after a pause that doubles if it did not live long."""
        pause = 0.0
        while not self._leaving.is_set():
            started = time.monotonic()
            try:
                code = await place.run_once()
                end = how_it_ended(code) + (f": {place.last_words}" if place.last_words else "")
            except OSError as error:  # the machine has no room for one more process
                code, end = 1, f"did not start: {error}"
            if self._leaving.is_set():
                return
            if code == CANNOT_START and not any(other.ready for other in self._places):
                self._failure = StartupError(place.last_words)
                self._leave(signal.SIGTERM)
                return
            log.warning("process %d %s; another takes its place", place.orders.number, end)
            pause = 0.0 if time.monotonic() - started > STEADY_S else pause
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._leaving.wait()
            pause = min(max(2 * pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)

    def _leave(self, number: signal.Signals) -> None:
        """The first time all drain; a SIGINT after that forces."""
        if not self._leaving.is_set():
            self._leaving.set()
            self._tell_all(signal.SIGTERM)
            for listener in self._listeners:  # or a client would wait in it, where nobody accepts any more
                listener.close()
            patience = self._settings.drain_timeout + OVERDUE_S
            asyncio.get_running_loop().call_later(patience, self._tell_all, signal.SIGKILL)
        elif number == signal.SIGINT:
            self._tell_all(signal.SIGINT)

    def _tell_all(self, number: signal.Signals) -> None:
        for place in self._places:
            place.leave(number)


def _folder() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory(prefix="tokenbus-gateway-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(f"--workers: no folder for the metrics of several processes: {error}") from None


def how_it_ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
