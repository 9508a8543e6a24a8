"""The live view: which names exist, which workers are alive behind them."""

import asyncio
import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from shared.connection import BUS_ERRORS, Redis
from shared.errors import BusUnavailable, ModelLoading, ModelNotFound, NoWorkers
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import (
    LOAD_STATES,
    Loadable,
    ModelRecord,
    Offer,
    WorkerInfo,
    decode_model,
    decode_offer,
    decode_worker,
)

log = get_logger(__name__)

T = TypeVar("T")

REMEMBERED_S = 24 * 3600.0  # how long a name nobody serves is known
LONGEST_NAME = 512  # that is compared with those that are known: for one of megabytes that would take seconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What Redis said: names ever heard of, the workers alive by model, and by name what is loaded on demand."""

    names: dict[str, ModelRecord] = field(default_factory=dict)
    workers: dict[str, list[WorkerInfo]] = field(default_factory=dict)
    loadable: dict[str, Loadable] = field(default_factory=dict)
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

    def first_started(self, model: str) -> int:
        """When the oldest living worker of a model started, in s since the epoch."""
        return int(min((worker.started for worker in self.workers.get(model, ())), default=0))


async def read_records(redis: Redis, keys: Keys) -> dict[str, ModelRecord]:
    """The catalogue, with names that nobody has served for a while."""
    return _records(await redis.hgetall(keys.models()))


def _records(found: dict[bytes, bytes]) -> dict[str, ModelRecord]:
    decoded = {name.decode(errors="replace"): _understood(decode_model, blob) for name, blob in found.items()}
    return {name: record for name, record in decoded.items() if record is not None}


def _understood(decode: Callable[[bytes], T], blob: bytes) -> T | None:
    """What somebody else wrote under our names must not end a process."""
    try:
        return decode(blob)
    except msgspec.MsgspecError as error:
        log.warning("not ours in the registry: %r: %s", blob[:80], error)
        return None


async def read_offers(redis: Redis, keys: Keys, *, but: str) -> list[Offer]:
    """Of all loaders but one."""
    loaders = [loader.decode(errors="replace") for loader in await redis.zrange(keys.loaders(), 0, -1)]
    blobs = await redis.line.batch(("GET", keys.loader(loader)) for loader in loaders if loader != but)
    return _offers(blobs)


async def take_snapshot(redis: Redis, keys: Keys) -> Snapshot:
    """Three round trips at most: catalogue and loaders, every index, every lease. Indexes are hints; leases decide."""
    now = time.time()
    found, loaders = await redis.line.batch([("HGETALL", keys.models()), ("ZRANGE", keys.loaders(), 0, -1)])
    records = _records(dict(zip(found[::2], found[1::2], strict=True)))
    names = {name: record for name, record in records.items() if now - record.last_seen < REMEMBERED_S}
    models = sorted({record.model for record in names.values()})
    answers = await redis.line.batch(
        [
            *(("ZRANGE", keys.workers(model), 0, -1) for model in models),
            *(("GET", keys.loader(loader.decode(errors="replace"))) for loader in loaders),
        ]
    )
    indexes, offers = answers[: len(models)], answers[len(models) :]
    leases = [
        keys.worker(model, id.decode(errors="replace"))
        for model, ids in zip(models, indexes, strict=True)
        for id in ids
    ]
    blobs: list[bytes | None] = await redis.line.batch(("GET", lease) for lease in leases)
    workers: dict[str, list[WorkerInfo]] = {}
    for blob in blobs:
        if blob is not None and (info := _understood(decode_worker, blob)):
            workers.setdefault(info.model, []).append(info)
    return Snapshot(names, workers, _loadable(_offers(offers)))


def _offers(blobs: Iterable[bytes | None]) -> list[Offer]:
    understood = (_understood(decode_offer, blob) for blob in blobs if blob is not None)
    return [offer for offer in understood if offer is not None]


def _loadable(offers: Iterable[Offer]) -> dict[str, Loadable]:
    """By each of the names. Of several who offer a model, that of who is furthest with it."""
    found: dict[str, Loadable] = {}
    for offer in offers:
        for model in offer.models:
            for name in model.names:
                if name not in found or LOAD_STATES.index(model.state) > LOAD_STATES.index(found[name].state):
                    found[name] = model
    return found


class Directory:
    """A snapshot kept fresh, and the answers that the gateway needs of it."""

    REFRESH_S = 0.25
    LOOK_WITHIN_S = 1.0
    OFFERS_MISSED_S = 10.0

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._met: dict[str, float] = {}  # every name this process has seen -> when (monotonic s)
        self._offers: dict[str, tuple[float, Loadable]] = {}  # when each was last there
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
        snapshot, now = await take_snapshot(self._redis, self._keys), time.monotonic()
        # A Redis that came back empty is told again within a second.
        self._offers |= {name: (now, model) for name, model in snapshot.loadable.items()}
        self._offers = {name: offer for name, offer in self._offers.items() if now - offer[0] < self.OFFERS_MISSED_S}
        snapshot.loadable.update({name: model for name, (_, model) in self._offers.items()})
        self.snapshot = snapshot
        self._met |= dict.fromkeys((*snapshot.names, *snapshot.loadable), now)
        if len(self._met) > len(snapshot.names):
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
            raise self.unavailable(name, f"No worker serves '{name}' at the moment.", retry_after=5)
        return record

    def unavailable(self, name: str, why: str, retry_after: float) -> NoWorkers:
        """The error that tells of a name that nobody serves: how far its load is, if it is loaded on demand."""
        found = self.snapshot.loadable.get(name)
        if found is None or found.state == "loaded":
            return NoWorkers(why, param="model", retry_after=retry_after)
        loading = {"state": found.state, "progress": found.progress, "eta_seconds": found.eta_seconds}
        if found.state == "failed":
            why = f"The model '{name}' could not be loaded: {found.error}"
        else:
            why = f"The model '{name}' is not loaded yet ({found.state})."
        return ModelLoading(why, param="model", retry_after=max(1.0, found.eta_seconds), loading=loading)

    def not_found(self, name: str) -> str:
        known = {*self.snapshot.live_names(), *self.snapshot.loadable}
        near = nearest(name, sorted(known) or list(self.snapshot.names))
        hint = f" Did you mean '{near}'?" if near else ""
        return f"The model '{name}' does not exist.{hint}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that was probably meant; case is the most frequent slip."""
    if len(name) > LONGEST_NAME:
        return None
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None
