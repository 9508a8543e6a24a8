"""The faults: one after the other in a seeded order, each kind once before any comes twice."""

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import redis

from shared.keys import GROUP, Keys
from shared.messages import Job, decode_job
from shared.queue import SUSPECT_AFTER_CRASHES
from tests.conftest import wait_until
from tests.fault.chaos.ledger import Ledger
from tests.fault.chaos.mix import MODEL
from tests.fault.chaos.stack import Cluster, Member, Worker

LEASE_S = 2.5


@dataclass(slots=True)
class Fault:
    """`jobs` are those that the worker held which was killed."""

    kind: str
    at: float
    jobs: set[str] = field(default_factory=set)


Inject = Callable[[Fault], Awaitable[None]]


def _name(inject: Inject) -> str:
    """`kill_worker` is called "kill worker"."""
    return str(getattr(inject, "__name__", inject)).replace("_", " ")


class Faults:
    def __init__(
        self, cluster: Cluster, ledger: Ledger, seed: int, pause: tuple[float, float], only: Collection[str] = ()
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._draw = random.Random(f"{seed} faults")
        self._pause = pause
        self.done: list[Fault] = []
        weights: dict[Inject, float] = {
            self.kill_worker: 4,
            self.drain_worker: 2,
            self.pause_worker: 1,
            self.pause_worker_beyond_its_lease: 2,
            self.kill_gateway: 2,
            self.pause_gateway: 1,
            self.kill_redis: 2,
            self.pause_redis: 1,
            self.empty_redis: 1,
            self.cut_subscribers: 2,
            self.cut_connections: 2,
        }
        self._weights = {inject: weight for inject, weight in weights.items() if not only or _name(inject) in only}
        self.once_each = False

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; never leaves anything paused or dead behind."""
        for number, inject in enumerate(self._schedule()):
            if await _within(stop.wait(), self._draw.uniform(*self._pause)):
                return
            fault = Fault(_name(inject), time.monotonic())
            try:
                await inject(fault)
            except AssertionError as error:
                self._ledger.violate("not back in time", f"{fault.kind}: {error}")
            self._ledger.note(f"fault: {fault.kind}, began {time.monotonic() - fault.at:.1f} s ago")
            self.done.append(fault)
            self.once_each = number + 1 >= len(self._weights)

    def _schedule(self) -> Iterator[Inject]:
        kinds = list(self._weights)
        yield from self._draw.sample(kinds, len(kinds))
        while True:
            yield self._draw.choices(kinds, list(self._weights.values()))[0]

    # -- workers --------------------------------------------------------------------------------------------------

    async def kill_worker(self, fault: Fault) -> None:
        worker = await self._innocent_worker()
        fault.jobs = {job.id for job in await self._held(worker)}
        fault.at = time.monotonic()
        worker.kill()

    async def drain_worker(self, fault: Fault) -> None:
        worker = await self._worker()
        worker.drain()
        life = worker.life
        await wait_until(lambda: worker.life > life, description="a drained worker ends", timeout=20)

    async def pause_worker(self, fault: Fault) -> None:
        async with _stopped((await self._worker()).process.popen):
            await asyncio.sleep(self._draw.uniform(0.3, LEASE_S - 0.8))

    async def pause_worker_beyond_its_lease(self, fault: Fault) -> None:
        async with _stopped((await self._innocent_worker()).process.popen):
            await asyncio.sleep(self._draw.uniform(LEASE_S + 0.5, 6))

    async def _worker(self) -> Worker:
        """One that serves, while another does too."""

        def ready() -> list[Worker]:
            found = [worker for worker in self._cluster.workers if worker.worker_id]
            return found if len(found) > 1 else []

        found: list[Worker] = await wait_until(ready, description="two workers serve", timeout=60)
        return self._draw.choice(found)

    async def _innocent_worker(self) -> Worker:
        """One without a suspect. A job that was in two crashes runs alone, and a third buries it: the rule cannot tell
        a worker that it killed from one that was killed beneath it. Random kills must not decide that."""

        async def innocent() -> Worker | None:
            worker = await self._worker()
            suspects = [job for job in await self._held(worker) if job.crashes >= SUSPECT_AFTER_CRASHES]
            return None if suspects else worker

        found: Worker = await wait_until(innocent, description="a worker without a suspect", timeout=60, every=0.1)
        return found

    async def _held(self, worker: Worker) -> list[Job]:
        """The jobs that were delivered to the worker and are not settled."""
        return await asyncio.to_thread(_held_by, self._cluster.redis.port, worker.worker_id or "")

    # -- gateways -------------------------------------------------------------------------------------------------

    async def kill_gateway(self, fault: Fault) -> None:
        gateway = await self._gateway()
        gateway.kill()

    async def pause_gateway(self, fault: Fault) -> None:
        async with _stopped((await self._gateway()).process.popen):
            await asyncio.sleep(self._draw.uniform(0.3, 5))

    async def _gateway(self) -> Member:
        """Any, once all are back: else nobody could get in."""
        for gateway in self._cluster.gateways:
            await wait_until(gateway.is_ready, description=f"{gateway.process.log} ready", timeout=60, every=0.1)
        return self._draw.choice(self._cluster.gateways)

    # -- Redis ----------------------------------------------------------------------------------------------------

    async def kill_redis(self, fault: Fault) -> None:
        await self._restart_redis(self._draw.uniform(0.1, 4))

    async def empty_redis(self, fault: Fault) -> None:
        await self._restart_redis(self._draw.uniform(0.1, 2), self._cluster.forget_data)

    async def pause_redis(self, fault: Fault) -> None:
        process = self._cluster.redis.process
        assert process is not None
        async with _stopped(process):
            await asyncio.sleep(self._draw.uniform(0.3, 4))

    async def cut_subscribers(self, fault: Fault) -> None:
        await asyncio.to_thread(_cut, self._cluster.redis.port, "pubsub")

    async def cut_connections(self, fault: Fault) -> None:
        await asyncio.to_thread(_cut, self._cluster.redis.port, "normal")

    async def _restart_redis(self, away: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._cluster.redis.kill()
        meanwhile()
        await asyncio.sleep(away)
        await asyncio.to_thread(self._cluster.redis.start)


@asynccontextmanager
async def _stopped(process: subprocess.Popen[bytes]) -> AsyncIterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


async def _within(awaitable: Awaitable[object], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await awaitable
    except TimeoutError:
        return False
    return True


def _cut(port: int, kind: str) -> None:
    with redis.Redis(port=port, socket_timeout=5) as client:
        client.client_kill_filter(_type=kind)


def _held_by(port: int, worker: str) -> list[Job]:
    keys, held = Keys(), []
    with redis.Redis(port=port, socket_timeout=5) as client:
        for stream in (*keys.job_streams(MODEL), keys.inbox(MODEL, worker)):
            try:
                rows = client.xpending_range(stream, GROUP, "-", "+", 1000, consumername=worker)
            except redis.ResponseError:  # Redis came back empty, and nobody has made the group yet
                continue
            for row in rows:
                for _, fields in client.xrange(stream, row["message_id"], row["message_id"]):
                    held.append(decode_job(fields[b"job"]))
    return held
