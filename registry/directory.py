"""The live view: which names exist, which workers are alive behind them."""

import asyncio
import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from shared.connection import BUS_ERRORS, Redis
from shared.errors import BusUnavailable, ModelNotFound, NoWorkers
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import ModelRecord, WorkerInfo, decode_model, decode_worker

log = get_logger(__name__)

T = TypeVar("T")

REMEMBERED_S = 24 * 3600.0  # how long a name nobody serves is known
LONGEST_NAME = 512  # that is compared with those that are known: for one of megabytes that would take seconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What Redis said: names ever heard of, and the workers alive by model."""

    names: dict[str, ModelRecord] = field(default_factory=dict)
    workers: dict[str, list[WorkerInfo]] = field(default_factory=dict)
    served: frozenset[tuple[str, str]] = field(init=False)  # name and model, of all workers

    def __post_init__(self) -> None:
        served = {
            (name, worker.model) for workers in self.workers.values() for worker in workers for name in worker.names
        }
        object.__setattr__(self, "served", frozenset(served))

    def live_names(self) -> list[str]:
        """Names that somebody alive serves, sorted."""
        return sorted({name for name, _ in self.served})

    def is_live(self, name: str) -> bool:
        record = self.names.get(name)
        return record is not None and (name, record.model) in self.served


async def read_records(redis: Redis, keys: Keys) -> dict[str, ModelRecord]:
    """The catalogue, with names that nobody has served for a while."""
    found = await redis.hgetall(keys.models())
    decoded = {name.decode(errors="replace"): _understood(decode_model, blob) for name, blob in found.items()}
    return {name: record for name, record in decoded.items() if record is not None}


def _understood(decode: Callable[[bytes], T], blob: bytes) -> T | None:
    """What somebody else wrote under our names must not end a process."""
    try:
        return decode(blob)
    except msgspec.MsgspecError as error:
        log.warning("not ours in the registry: %r: %s", blob[:80], error)
        return None


async def take_snapshot(redis: Redis, keys: Keys) -> Snapshot:
    """Two round trips: the catalogue, then every index and lease at once. Indexes are hints; the lease decides."""
    now = time.time()
    records = await read_records(redis, keys)
    names = {name: record for name, record in records.items() if now - record.last_seen < REMEMBERED_S}
    models = sorted({record.model for record in names.values()})
    async with redis.pipeline(transaction=False) as pipe:
        for model in models:
            pipe.zrange(keys.workers(model), 0, -1)
        indexes: list[list[bytes]] = await pipe.execute() if models else []
        leases = [
            keys.worker(model, id.decode(errors="replace"))
            for model, ids in zip(models, indexes, strict=True)
            for id in ids
        ]
        for lease in leases:
            pipe.get(lease)
        blobs: list[bytes | None] = await pipe.execute() if leases else []
    workers: dict[str, list[WorkerInfo]] = {}
    for blob in blobs:
        if blob is not None and (info := _understood(decode_worker, blob)):
            workers.setdefault(info.model, []).append(info)
    return Snapshot(names, workers)


class Directory:
    """A snapshot kept fresh, and the answers that the gateway needs of it."""

    REFRESH_S = 0.25
    LOOK_WITHIN_S = 1.0

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._met: dict[str, float] = {}  # every name this process has seen -> when (monotonic s)
        self.snapshot = Snapshot()

    async def run(self) -> None:
        """Until cancelled. While Redis is away the last view stays."""
        while True:
            try:
                await self.refresh()
            except BUS_ERRORS as error:
                log.debug("no fresh view of the workers: %s", error)
            await asyncio.sleep(self.REFRESH_S)

    async def refresh(self) -> None:
        self.snapshot = await take_snapshot(self._redis, self._keys)
        now = time.monotonic()
        self._met |= dict.fromkeys(self.snapshot.names, now)
        if len(self._met) > len(self.snapshot.names):
            self._met = {name: at for name, at in self._met.items() if now - at < REMEMBERED_S}

    async def look(self) -> Snapshot:
        """The view as of now; the last one if Redis does not answer."""
        try:
            async with asyncio.timeout(self.LOOK_WITHIN_S):
                await self.refresh()
        except BUS_ERRORS as error:
            log.debug("an old view of the workers: %s", error)
        return self.snapshot

    async def resolve(self, name: str) -> ModelRecord:
        """The model behind a name with somebody alive to serve it. Raises ModelNotFound, NoWorkers."""
        if not self.snapshot.is_live(name):
            try:
                await self.refresh()  # a worker may have come since
            except BUS_ERRORS as error:
                raise BusUnavailable("The message bus is unavailable; try again shortly.", retry_after=2) from error
        record = self.snapshot.names.get(name)
        if record is None and name not in self._met:
            raise ModelNotFound(self.not_found(name), param="model")
        # A Redis that came back empty has forgotten the name until its workers are back.
        if record is None or not self.snapshot.is_live(name):
            raise NoWorkers(f"No worker serves '{name}' at the moment.", param="model", retry_after=5)
        return record

    def first_started(self, model: str) -> int:
        """When the oldest living worker of a model started, in s since the epoch."""
        return int(min((worker.started for worker in self.snapshot.workers.get(model, ())), default=0))

    def not_found(self, name: str) -> str:
        near = nearest(name, self.snapshot.live_names() or list(self.snapshot.names))
        hint = f" Did you mean '{near}'?" if near else ""
        return f"The model '{name}' does not exist.{hint}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that was probably meant; case is the most frequent slip."""
    if len(name) > LONGEST_NAME:
        return None
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None
