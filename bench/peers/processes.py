"""The processes of one peer, from their start to the end of all that they have started."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.peers.places import CHECKOUT, PLACE
from bench.systems import Role, Unavailable

END_WITHIN_S = 5.0  # of SIGTERM, then SIGKILL


class Processes:
    """Each one leads a session of its own, so that Ctrl-C reaches it through `end` only, with all that it has started;
    and none outlives this process, however that ends."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._running: list[tuple[str, asyncio.subprocess.Process]] = []
        self.pids: dict[Role, list[int]] = {}

    async def start(
        self, role: Role, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> None:
        """Its output goes to a file in the peers' folder."""
        PLACE.mkdir(exist_ok=True)
        tether = [sys.executable, "-m", "cli.tether", str(os.getpid()), str(int(signal.SIGKILL))]
        with self._log(name).open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *tether,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=CHECKOUT,
                env={**os.environ, "NO_PROXY": "127.0.0.1", **(environment or {})},
                start_new_session=True,
            )
        self._running.append((name, process))
        self.pids.setdefault(role, []).append(process.pid)

    def check(self) -> None:
        """Raises Unavailable when one has ended."""
        for name, process in self._running:
            if process.returncode is not None:
                raise Unavailable(f"{name} of {self._peer} ended with {process.returncode}; see {self._log(name)}")

    async def end(self) -> None:
        """Last started, first ended. Idempotent."""
        self.pids.clear()
        for _, process in reversed(self._running):
            _signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(END_WITHIN_S):
                for _, process in self._running:
                    await process.wait()
        except TimeoutError:
            pass  # FastChat's servers wait for open requests
        finally:
            for _, process in self._running:
                _signal(process, signal.SIGKILL)  # also what they have started and left
        for _, process in self._running:
            await process.wait()
        self._running.clear()

    def _log(self, name: str) -> Path:
        return PLACE / f"{self._peer}.{name}.log"


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
