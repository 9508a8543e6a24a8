"""The processes of a run, and the supervisor that starts whatever ends again, as systemd or Kubernetes would."""

import asyncio
import re
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from tests.conftest import BINARIES, RedisServer, free_port, wait_until
from tests.fault.chaos.ledger import Ledger
from tests.fault.chaos.mix import CRASH_WORD, MODEL
from tests.processes import Process, Stack

GATEWAYS = ("pull", "shortest_queue")  # a dispatch method each
WORKER_INTERVALS_MS = (10, 13, 16, 20)
SLOTS = 8
MAX_QUEUE = 64  # less than the clients can fill, so that some are refused
POISONED = 134  # what a worker ends with when it meets the crash word
SERVES = re.compile(r"worker (\S+) serves")


class Member:
    """One place in the stack. Its process may change; `life` counts them."""

    def __init__(self, stack: Stack, module: str, *flags: str) -> None:
        self.module = module
        self._stack = stack
        self._flags = flags
        self.life = 0
        self._killed: set[int] = set()  # lives that ended by our hand
        self.process = self._spawn()

    def _spawn(self) -> Process:
        return self._stack.spawn(self.module, *self._flags)

    def again(self) -> None:
        self.life += 1
        self.process = self._spawn()

    def kill(self) -> None:
        self._killed.add(self.life)
        self.process.kill()

    def drain(self) -> None:
        self._killed.add(self.life)
        self.process.signal(signal.SIGTERM)

    def was_killed(self, life: int) -> bool:
        return life in self._killed

    @property
    def ended_by_itself(self) -> bool:
        code = self.process.popen.poll()
        return (
            code is not None and not self.was_killed(self.life) and not (self.module == "worker" and code == POISONED)
        )

    @property
    def worker_id(self) -> str | None:
        """Under which it is registered; None before that."""
        found = SERVES.findall(self.process.said())
        return found[-1] if found and not self.process.ended else None


class Gateway(Member):
    def __init__(self, stack: Stack, method: str) -> None:
        self.port = free_port()
        flags = ("--port", str(self.port), "--dispatch-method", method, "--max-queue", str(MAX_QUEUE))
        super().__init__(stack, "gateway", *flags)

    async def get(self, path: str) -> httpx2.Response | None:
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=5) as http:
                return await http.get(path)
        except httpx2.TransportError:
            return None

    async def is_ready(self) -> bool:
        response = await self.get("/readyz")
        return response is not None and response.status_code == 200


class Worker(Member):
    def __init__(self, stack: Stack, interval_ms: int) -> None:
        flags = ("--engine", "echo", "--model-names", MODEL, "--echo-crash-word", CRASH_WORD)
        super().__init__(
            stack, "worker", *flags, "--echo-interval-ms", str(interval_ms), "--limit-worker-concurrency", str(SLOTS)
        )


class Cluster:
    """One Valkey with an append-only file, two gateways, four workers."""

    LOOK_S = 0.05

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._data = folder / "valkey"
        self._data.mkdir(parents=True)
        persistence = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
        self.redis = RedisServer(BINARIES["valkey"], self._data, *persistence)
        self._stack = Stack(self.redis.url, folder)
        self._ledger = ledger
        self.gateways: list[Gateway] = []
        self.workers: list[Worker] = []
        self.exits: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Cluster"]:
        """Everything that was started ends with the block, however it is left."""
        try:
            await asyncio.to_thread(self.redis.start)
            self.gateways = [Gateway(self._stack, method) for method in GATEWAYS]
            self.workers = [Worker(self._stack, interval) for interval in WORKER_INTERVALS_MS]
            async with asyncio.TaskGroup() as tasks:
                supervisor = tasks.create_task(self._supervise(), name="supervisor")
                await self.whole()
                yield self
                supervisor.cancel()
        finally:
            self._stack.close()
            self.redis.kill()

    @property
    def members(self) -> list[Member]:
        return [*self.gateways, *self.workers]

    async def _supervise(self) -> None:
        """Until cancelled."""
        while True:
            for member in self.members:
                if member.process.ended:
                    self._note_end(member)
                    member.again()
            await asyncio.sleep(self.LOOK_S)

    def _note_end(self, member: Member) -> None:
        exit = f"{member.module} {member.process.popen.returncode}"
        self.exits[exit] += 1
        self._ledger.note(f"exit: {exit}, {member.process.log.name}")
        if member.ended_by_itself:
            last = (member.process.said().splitlines() or [""])[-1]
            code = member.process.popen.returncode
            self._ledger.violate("ended by itself", f"{member.module}, exit code {code}, {member.process.log}: {last}")

    async def whole(self) -> None:
        """Until every place is filled and ready."""
        await wait_until(lambda: all(worker.worker_id for worker in self.workers), description="workers", timeout=60)
        for gateway in self.gateways:
            await wait_until(gateway.is_ready, description=f"{gateway.process.log} ready", timeout=60, every=0.1)

    def forget_data(self) -> None:
        """What a Redis without persistence comes back with."""
        shutil.rmtree(self._data)
        self._data.mkdir(parents=True)
