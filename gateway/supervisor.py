"""The parent of several gateway processes: starts one for each listening socket, replaces what dies, ends all of them.

Children lead process groups of their own, so that a terminal's Ctrl-C reaches the parent alone; it passes the word on.
"""

import asyncio
import itertools
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

from gateway.orders import LEAVING, READY, Orders
from gateway.settings import GatewaySettings
from shared.errors import StartupError
from shared.logging import get_logger

log = get_logger("gateway")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0  # new connections of a place that is empty wait as long
STEADY_S = 10.0  # a child that lived so long is replaced at once
OVERDUE_S = 15.0  # after the drain: a child that has not ended by then hangs
CANNOT_START = 2  # exit code
LONGEST_LINE = 2**20  # bytes that a child may say at once


class Child:
    """One process, from its start to its end."""

    def __init__(self, orders: Orders) -> None:
        self.number = orders.number
        self.started = time.monotonic()
        self.ready = False
        self.replaceable = asyncio.Event()  # it accepts nothing any more: it leaves, or has ended
        self.end: str | None = None  # once it has ended
        self.cannot_start = ""  # and why not, if that was why
        self._orders = orders
        self._told = False
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        try:
            code, last_words = await self._run()
            self.end = how_it_ended(code) + (f": {last_words}" if last_words else "")
            self.cannot_start = last_words if code == CANNOT_START else ""
        except OSError as error:  # the machine has no room for one more process
            self.end = f"could not be started: {error}"
        finally:
            self.ready = False
            mark_process_dead(self.number, str(self._orders.metrics))  # type: ignore[no-untyped-call]
            self.replaceable.set()

    async def _run(self) -> tuple[int, str]:
        """Its exit code and its last words."""
        python = (sys.executable, "-P") if sys.flags.safe_path else (sys.executable,)
        self._process = process = await asyncio.create_subprocess_exec(
            *python,
            *("-m", "gateway.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self._orders.listener],
            process_group=0,
            limit=LONGEST_LINE,
        )
        if self._told:  # while the process was being made
            process.terminate()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps(self._orders))  # and stays open: its end is that of this parent
        last_words = ""
        async for line in process.stdout:
            if line == READY:
                self.ready = True
            elif line == LEAVING:
                self.ready = False
                self.replaceable.set()
            else:
                last_words = line.decode(errors="replace").strip()
        return await process.wait(), last_words

    def tell(self, number: signal.Signals) -> None:
        self._told = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


class Supervisor:
    def __init__(self, settings: GatewaySettings, listeners: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._listeners = listeners
        self._children: dict[int, Child] = {}  # that run, by number
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
        async with asyncio.TaskGroup() as tasks:
            for place, listener in enumerate(self._listeners):
                tasks.create_task(self._keep(listener, metrics, tasks), name=f"place {place}")

    async def _keep(self, listener: socket.socket, metrics: Path, tasks: asyncio.TaskGroup) -> None:
        """Somebody accepts here until all leave: who dies is replaced, and who leaves by itself too, while it drains;
        at once, or after a pause that doubles where they do not live long."""
        share, pause = self._settings.share(), 0.0
        while not self._leaving.is_set():
            number = next(number for number in itertools.count() if number not in self._children)
            child = self._children[number] = Child(Orders(share, number, listener.fileno(), metrics))
            tasks.create_task(self._run(child), name=f"process {number}")
            await child.replaceable.wait()
            if self._leaving.is_set():
                return
            if child.cannot_start and not any(other.ready for other in self._children.values()):
                self._failure = StartupError(child.cannot_start)
                self._leave(signal.SIGTERM)
                return
            log.warning("process %d %s; another takes its place", number, child.end or "leaves")
            if time.monotonic() - child.started > STEADY_S:
                pause = 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._leaving.wait()
            pause = min(max(2 * pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)

    async def _run(self, child: Child) -> None:
        await child.run()
        del self._children[child.number]

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
        for child in self._children.values():
            child.tell(number)


def _folder() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory(prefix="tokenbus-gateway-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(f"--workers: no folder for the metrics of several processes: {error}") from None


def how_it_ended(code: int) -> str:
    if code < 0:
        named = -code in set(signal.Signals)
        return f"was ended by {signal.Signals(-code).name if named else f'signal {-code}'}"
    return f"ended with exit code {code}"
