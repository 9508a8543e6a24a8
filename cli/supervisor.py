"""Runs services as child processes: starts them, restarts what dies, ends them in order.

Each child leads a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone; and none outlives it.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

LOOK_EVERY_S = 0.1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0  # a child that lived so long is restarted without a longer pause than the last time
LAST_LINES = 12

Say = Callable[[str], None]


class ChildFailed(Exception):
    """A service ended before all were ready; its text says which and quotes its log."""


@dataclass(frozen=True, slots=True)
class Service:
    """What to run and how to end it. Services of one tier end together, the highest tier first."""

    name: str
    command: tuple[str, ...]
    log: Path
    tier: int
    grace_s: float = 10.0  # between SIGTERM and SIGKILL
    environment: Mapping[str, str] = field(default_factory=dict)  # beside the supervisor's own
    folder: Path | None = None
    inherit: tuple[int, ...] = ()  # open file descriptors
    orphan_signal: signal.Signals = signal.SIGKILL  # what it gets when the supervisor is killed


class Child:
    """One service's process, and its successors."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.deaths = 0  # by itself, since it is kept running
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        service = self.service
        tether = (sys.executable, "-P", "-m", "shared.tether", str(os.getpid()), str(int(service.orphan_signal)))
        with service.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tether,
                *service.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=service.folder,
                env={**os.environ, **service.environment},
                pass_fds=service.inherit,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of what was started; the tether becomes the command."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode if self._process else None

    def cpu_s(self) -> float:
        """That it has used, and what it started."""
        used = 0.0
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    times = one.cpu_times()
                    used += times.user + times.system
        return used

    def last_words(self) -> list[str]:
        try:
            return self.service.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        except OSError:
            return []

    async def keep_running(self, say: Say) -> None:
        """Until cancelled: when the process ends by itself it is started again, after a pause that doubles."""
        pause = FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            await self._wait()
            self.deaths += 1
            if time.monotonic() - started > STEADY_S:
                pause = FIRST_PAUSE_S
            say(f"{self.service.name} {how_it_ended(self.exit_code)}; starts again in {pause:g} s ({self.service.log})")
            await asyncio.sleep(pause)
            try:
                await self.start()
            except OSError as error:
                say(f"{self.service.name} does not start: {error}")
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def stop(self) -> None:
        """SIGTERM, patience, SIGKILL; then whatever the process started and left behind."""
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wait(), self.service.grace_s)
        self.kill()
        await self._wait()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        if self._process:
            with suppress(ProcessLookupError, PermissionError):  # macOS refuses to signal a zombie's group
                os.killpg(self._process.pid, signum)

    async def _wait(self) -> None:
        if self._process:
            await self._process.wait()


class Supervisor:
    """Leaving the block ends every child."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._children: list[Child] = []
        self._kept: dict[Child, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tier in sorted({child.service.tier for child in self._children}, reverse=True):
            leaving = [child for child in self._children if child.service.tier == tier]
            self._say(f"stopping {', '.join(child.service.name for child in leaving)}")
            async with asyncio.TaskGroup() as stopping:
                for child in leaving:
                    stopping.create_task(child.stop(), name=f"stop {child.service.name}")

    async def start(self, service: Service) -> Child:
        """Raises OSError, or ValueError for a command that no process can be given."""
        service.log.unlink(missing_ok=True)
        child = Child(service)
        self._children.append(child)
        try:
            await child.start()
        except (OSError, ValueError):
            self._children.remove(child)
            raise
        return child

    def keeps(self, child: Child) -> bool:
        return child in self._kept

    async def retire(self, child: Child) -> None:
        """Ends it, for good."""
        if keeper := self._kept.pop(child, None):
            keeper.cancel()
            await asyncio.wait({keeper})  # or it might start it once more
        await child.stop()
        if child in self._children:
            self._children.remove(child)

    async def until(self, ready: Callable[[], Awaitable[bool]]) -> None:
        """Returns once `ready` says so. Raises ChildFailed if a child ends first."""
        while not await ready():
            for child in self._children:
                if child.exit_code is not None:
                    raise ChildFailed(_obituary(child))
            await asyncio.sleep(LOOK_EVERY_S)

    async def keep_running(self, *also: Coroutine[None, None, None]) -> None:
        """Every child that there is now, beside what else is to run. Until cancelled."""
        async with asyncio.TaskGroup() as self._keepers:
            for child in self._children:
                self.keep(child)
            for work in also:
                self._keepers.create_task(work)

    def keep(self, child: Child) -> None:
        """Starts it again whenever it ends. Only within `keep_running`; idempotent."""
        if child in self._kept:
            return
        keeper = child.keep_running(self._say)
        self._kept[child] = self._keepers.create_task(keeper, name=f"keep {child.service.name}")

    def kill(self) -> None:
        """No patience any more; leaving the block then takes no time."""
        for child in self._children:
            child.kill()


def how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _obituary(child: Child) -> str:
    told = f"{child.service.name} {how_it_ended(child.exit_code)}; the end of {child.service.log}:"
    return "\n".join([told, *child.last_words()])
