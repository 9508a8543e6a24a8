"""`tokenbus drain WORKER`: sends a worker home from anywhere; its streams go on at other workers."""

import asyncio
import sys
import time
from collections.abc import Sequence

import msgspec
from pydantic import Field
from pydantic_settings import CliPositionalArg, CliToggleFlag

from cli.bus import BusSettings, count, on_bus
from registry.directory import Snapshot, take_snapshot
from shared.connection import Redis
from shared.errors import StartupError
from shared.keys import Keys
from shared.messages import Drain, WorkerInfo, decode_worker, encode

LOOK_S = 0.05
ASK_AGAIN_S = 1.0


class DrainSettings(BusSettings):
    """Send a worker home: it takes nothing more, its streams go on at other workers, and its process ends.

    Under `tokenbus up` or a supervisor of containers a new process takes its place: there, to drain is to replace.
    """

    worker: CliPositionalArg[str] = Field(description="its id in `tokenbus ps`, how that begins, or its host's name")
    wait: float = Field(60.0, ge=0, description="s until it must be gone; then the exit code is 1")
    no_wait: CliToggleFlag[bool] = Field(False, description="only tell it, as --wait 0")


async def run(settings: DrainSettings) -> int:
    async with on_bus(settings) as (redis, keys):
        snapshot = await take_snapshot(redis, keys)
        worker = find(settings.worker, [info for infos in snapshot.workers.values() for info in infos])
        print(describe(worker, snapshot), flush=True)
        farewell = Farewell(redis, keys, worker)
        if settings.no_wait or not settings.wait:
            return await farewell.told()
        return await farewell.seen(settings.wait)


def find(name: str, alive: Sequence[WorkerInfo]) -> WorkerInfo:
    """By whole id, else by host, else by how the id begins. Raises StartupError unless that is exactly one."""
    by_id = [info for info in alive if info.id == name]
    by_host = [info for info in alive if info.id.rpartition("-")[0] == name]
    found = by_id or by_host or [info for info in alive if name and info.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise StartupError(f"'{name}' may be any of {_ids(found)}; name one")
    raise StartupError(f"there is no worker '{name}'; alive are: {_ids(alive) or 'none at the moment'}")


def _ids(workers: Sequence[WorkerInfo]) -> str:
    return ", ".join(sorted(info.id for info in workers))


def describe(worker: WorkerInfo, snapshot: Snapshot) -> str:
    """What it is about to leave behind."""
    others = [info for info in snapshot.workers[worker.model] if info.id != worker.id and info.state == "ready"]
    streams = f"worker {worker.id} has {count(worker.running, 'stream')} of '{worker.model}'"
    return streams if others else f"{streams}; nobody else serves it: jobs wait for the next worker"


class Farewell:
    """Tells one worker to leave, and watches it go."""

    def __init__(self, redis: Redis, keys: Keys, worker: WorkerInfo) -> None:
        self._redis = redis
        self._control = keys.control(worker.id)
        self._lease = keys.worker(worker.model, worker.id)
        self._id = worker.id

    async def _tell(self) -> bool:
        """Whether anybody listened."""
        return bool(await self._redis.publish(self._control, encode(Drain())))

    async def told(self) -> int:
        if await self._tell():
            print(f"worker {self._id} is told")
            return 0
        print(f"tokenbus drain: worker {self._id} does not listen; without --no-wait it is told again", file=sys.stderr)
        return 1

    async def seen(self, within: float) -> int:
        """Tells it again while it shows no sign of leaving: it may just be subscribing anew."""
        started, heard, told_at = time.monotonic(), False, float("-inf")
        while (info := await self._look()) is not None:
            now = time.monotonic()
            if now - started > within:
                print(f"tokenbus drain: {self._still_there(info, heard, within)}", file=sys.stderr)
                return 1
            if info.state == "ready" and now - told_at > ASK_AGAIN_S:
                heard, told_at = await self._tell() or heard, now
            await asyncio.sleep(LOOK_S)
        print(f"worker {self._id} left after {time.monotonic() - started:.1f} s")
        return 0

    async def _look(self) -> WorkerInfo | None:
        blob = await self._redis.get(self._lease)
        try:
            return None if blob is None else decode_worker(blob)
        except msgspec.MsgspecError:
            raise StartupError(f"the lease of worker {self._id} is not readable") from None

    def _still_there(self, info: WorkerInfo, heard: bool, within: float) -> str:
        if info.state != "ready":
            why = f"it is draining, with {count(info.running, 'stream')} left"
        else:
            why = "it was told, and does not move" if heard else "it does not listen"
        return f"worker {self._id} is still there after {within:g} s: {why}"
