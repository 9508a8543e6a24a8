"""Loads models when they are asked for, and unloads those that are idle: for `tokenbus up` with a models.yaml.

Gateways tell what is asked for (`demand`), this tells them what there is and how far it is (`Offer`). Where memory is
measured and not given, one model is loaded at a time: how much it leaves free shows when it is loaded.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

from cli.memory import Freed, Memory, Place, gpus_of
from cli.stack import Model
from cli.supervisor import Child, Service, Supervisor, how_it_ended
from registry.directory import Snapshot, read_offers, take_snapshot
from registry.table import waiting as queued
from shared.connection import BUS_ERRORS, Redis
from shared.errors import one_line, shortened
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import Loadable, LoadState, Offer, WorkerInfo, encode

log = get_logger(__name__)

LOOK_EVERY_S = 0.25
OFFER_MS = 5000
OFFER_EVERY_S = 1.0
FORGOTTEN_S = 60
ASKED_FOR_S = 5.0  # after that a client has given up: gateways repeat what is waited for
SPARED_S = 2.0  # what was just loaded is not idle: its requests are on their way
PATIENT_S = 5.0  # that somebody waits for memory before what is asked for again and again counts as idle in between
CLAIM_MS = 3000  # until an offer tells what is loaded
LOOK_AT_LOAD_S, STILL_S, STILL = 5.0, 60.0, 0.002  # a load that uses less of a core for so long hangs
FAILED_S = 30.0  # until a load that failed is tried again
LONGEST_LOAD_S = 1800.0
MOST_DEATHS = 3  # of a worker that has served, one after the other
START_S, BYTES_PER_S = 6.0, 300e6  # a guess how long the first load takes
LONGEST_ERROR = 300
NEVER, FOREVER = float("-inf"), float("inf")


@dataclass(slots=True)
class OnDemand:
    """A model that may be loaded. Times are time.monotonic()'s."""

    model: Model
    service: Service
    keep_alive: float  # s
    need: int  # bytes of memory
    takes: float  # s that a load takes: a guess, then what the last one took
    child: Child | None = None
    state: LoadState = "unloaded"
    started: float = 0.0  # also of one that died and is started again
    loaded: float = NEVER
    deaths: int = 0  # of its worker, when that was lost
    used: float = NEVER
    asked: float = NEVER  # since it was last unloaded
    waits_since: float = FOREVER
    moved: float = 0.0  # when a load was last seen to compute
    looked: float = 0.0
    cpu_s: float = 0.0  # that it had used then
    was_killed: bool = False  # while it was loaded, since it was last there
    failed: float = 0.0
    error: str = ""
    demand: float = 0.0  # as the gateways wrote it
    leaving: asyncio.Task[None] | None = None

    @property
    def place(self) -> Place:
        return Place() if self.child is None else Place.of(self.child.service)

    def told(self, now: float) -> Loadable:
        names = self.model.names
        if self.state != "loading":
            etas = {"loaded": 0.0, "failed": self.failed + FAILED_S - now}
            eta = max(0.0, etas.get(self.state, self.takes))
            return Loadable(names=names, state=self.state, eta_seconds=round(eta, 1), error=self.error)
        passed = now - self.started
        return Loadable(
            names=names,
            state="loading",
            progress=round(min(0.99, passed / self.takes), 2),
            eta_seconds=round(max(1.0, self.takes - passed), 1),
        )


def guess_of_load(weights: int) -> float:
    """s, from bytes."""
    return START_S + weights / BYTES_PER_S


class Loader:
    def __init__(
        self,
        models: Sequence[OnDemand],
        memory: Memory,
        supervisor: Supervisor,
        redis: Redis,
        keys: Keys,
        id: str,
    ) -> None:
        """id: what its workers say that they were started by."""
        self._models = list(models)
        self._memory = memory
        self._supervisor = supervisor
        self._redis = redis
        self._keys = keys
        self._id = id
        self._offered: list[Loadable] = []
        self._offered_at = 0.0
        self._has_heard = False

    @asynccontextmanager
    async def telling(self, workers: Mapping[str, Child]) -> AsyncIterator[None]:
        """Within the block everybody hears what there is. workers: those that are started with all the rest, by
        model."""
        now = time.monotonic()
        for model in self._models:
            if (child := workers.get(model.model.name)) is not None:
                model.child, model.state = child, "loading"
                model.started = model.moved = model.used = now
        offers = asyncio.create_task(self._repeat(self._offer), name="offers")  # apart from looks, which may take long
        try:
            yield
        finally:
            offers.cancel()
            await asyncio.wait({offers})

    async def run(self) -> None:
        """Until cancelled; within the supervisor's `keep_running`. What was asked for before says nothing."""
        await self._repeat(self._look)

    async def _repeat(self, act: Callable[[], Awaitable[None]]) -> None:
        while self._models:
            try:
                await act()
            except BUS_ERRORS as error:
                log.debug("the bus was away: %s", error)
            except Exception:  # all else that this command runs would end with it
                log.exception("models are not looked after")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        await self._hear()
        snapshot = await take_snapshot(self._redis, self._keys)
        now = time.monotonic()
        for model in self._models:
            self._follow(model, snapshot, now)
        for model in self._models:
            if now - model.used > model.keep_alive and await self._is_idle(model, snapshot, now, SPARED_S):
                self._unload(model, f"idle for {model.keep_alive:g} s")
        await self._load_next(snapshot, now)

    async def _hear(self) -> None:
        """Clocks differ: what counts is that a gateway has written another time."""
        found = dict(await self._redis.zrange(self._keys.demand(), 0, -1, withscores=True))
        for model in self._models:
            score = found.get(model.model.name.encode())
            if score is not None and score != model.demand:
                model.demand = score
                if self._has_heard:
                    model.used = model.asked = time.monotonic()
        self._has_heard = True

    def _follow(self, model: OnDemand, snapshot: Snapshot, now: float) -> None:
        """What became of its worker."""
        if model.leaving is not None:
            if not model.leaving.done():
                return
            model.leaving, model.child = None, None
        if model.state == "failed" and now - model.failed > FAILED_S:
            model.state, model.error = "unloaded", ""
        if model.child is None:
            return
        workers = self._workers(model, snapshot)
        if any(info.running for info in workers):
            model.used = now
        if model.state == "loading" and workers:
            if not self._supervisor.keeps(model.child):
                model.takes = max(1.0, now - model.started)
            model.state, model.used, model.loaded, model.was_killed = "loaded", now, now, False
            self._supervisor.keep(model.child)
        elif model.state == "loaded" and not workers:  # it is started again, by its keeper
            model.state, model.started, model.moved, model.deaths = "loading", now, now, model.child.deaths - 1
        elif model.state == "loading":
            self._judge(model, model.child, now)

    def _judge(self, model: OnDemand, child: Child, now: float) -> None:
        """A load that goes on, or has failed. One that was killed, by whoever needed its memory say, is begun once
        more; a worker that has served and hangs is killed, and started again by its keeper."""
        is_kept, why = self._supervisor.keeps(child), ""
        if self._is_still(model, child, now):
            if is_kept:
                log.warning("%s hangs while it is started again, and is killed", model.model.name)
                model.moved = now
                child.kill()
                return
            why = f"it has computed nothing for {STILL_S:g} s"
        if not is_kept and child.exit_code is not None:
            why = f"its worker {how_it_ended(child.exit_code)}"
            if child.exit_code < 0 and not model.was_killed:
                log.warning("%s: %s while it was loaded, and is loaded again", model.model.name, why)
                self._let_go(model, "waiting")
                model.was_killed, model.asked = True, now
                return
        elif is_kept and child.deaths - model.deaths >= MOST_DEATHS:
            why = "its worker ends again and again"
        if now - model.started > LONGEST_LOAD_S:
            why = f"it has not come within {LONGEST_LOAD_S:g} s"
        if why:
            last = [line for line in child.last_words() if line.strip()][-1:]
            self._fail(model, ": ".join([why, *last]), now)

    def _is_still(self, model: OnDemand, child: Child, now: float) -> bool:
        """A stopped or stuck process uses no time of any processor."""
        if now - model.looked > LOOK_AT_LOAD_S:
            used = child.cpu_s()
            if not 0 <= used - model.cpu_s < STILL * (now - model.looked):  # a new process has used less
                model.moved = now
            model.looked, model.cpu_s = now, used
        return now - model.moved > STILL_S

    def _fail(self, model: OnDemand, why: str, now: float) -> None:
        model.error, model.failed = shortened(why, LONGEST_ERROR), now
        log.warning("%s could not be loaded: %s", model.model.name, model.error)
        self._let_go(model, "failed")

    async def _is_idle(self, model: OnDemand, snapshot: Snapshot, now: float, spared: float) -> bool:
        """Loaded, and neither busy nor about to be. spared: s after it was asked for."""
        if model.state != "loaded" or model.child is None or model.leaving is not None:
            return False
        if now - model.used < spared or now - model.loaded < SPARED_S:
            return False
        if any(info.running for info in self._workers(model, snapshot)):
            return False
        return not any([await queued(self._redis, self._keys, name) for name in model.model.models])

    def _unload(self, model: OnDemand, why: str) -> None:
        log.info("%s is unloaded: %s", model.model.name, why)
        self._let_go(model, "unloaded")

    def _let_go(self, model: OnDemand, state: LoadState) -> None:
        model.state, model.asked = state, NEVER
        if model.child is not None:
            model.leaving = asyncio.create_task(self._supervisor.retire(model.child))

    async def _load_next(self, snapshot: Snapshot, now: float) -> None:
        """Who waits for the longest time comes first; what fits beside it need not wait until there is room for it."""
        for model in self._models:
            if model.state in ("unloaded", "waiting"):
                served = any(snapshot.workers.get(name) for name in model.model.models)  # by somebody else
                wanted = now - model.asked < ASKED_FOR_S and not served
                model.waits_since = min(model.waits_since, now) if wanted else FOREVER
                model.state = "waiting" if wanted else "unloaded"
        waiting = [model for model in self._models if model.state == "waiting" and model.child is None]
        waiting.sort(key=lambda model: model.waits_since)
        elsewhere = await self._loaded_elsewhere() if waiting else set()
        for number, model in enumerate(waiting):
            if model.model.name in elsewhere:
                continue
            if model.need and self._memory.is_measured and any(map(self._is_unmeasured, self._models)):
                continue
            room = await self._room(model)
            if room is None and number == 0 and await self._makes_room(model, snapshot, now):
                room = Place()
            if room is not None and await self._redis.set(
                self._keys.load(model.model.name), self._id, nx=True, px=CLAIM_MS
            ):
                await self._load(model, room, now)

    def _is_unmeasured(self, model: OnDemand) -> bool:
        """It is loaded for the first time: what it takes does not show yet."""
        return model.state == "loading" and (model.child is None or not self._supervisor.keeps(model.child))

    async def _loaded_elsewhere(self) -> set[str]:
        """Models that another loader has begun to load, or has."""
        offers = await read_offers(self._redis, self._keys, but=self._id)
        return {model.names[0] for offer in offers for model in offer.models if model.state in ("loading", "loaded")}

    async def _room(self, model: OnDemand, freed: Freed = MappingProxyType({})) -> Place | None:
        taken = sum(other.need for other in self._models if other.child is not None)
        return await asyncio.to_thread(self._memory.room, model.model, model.need, taken, freed)

    async def _makes_room(self, model: OnDemand, snapshot: Snapshot, now: float) -> bool:
        """Of those that are idle the ones that were not used for the longest time leave, if that helps. True: it is to
        be loaded all the same."""
        others = [
            other
            for other in self._models
            if other.child is not None and other.need > 0 and bool(gpus_of(other.model)) == bool(gpus_of(model.model))
        ]
        if not others:
            return True  # nobody could make more of it: the worker says what is wrong, if anything is
        if any(other.leaving for other in others):
            return False
        spared = SPARED_S if now - model.waits_since < PATIENT_S else 0.0
        leaving, freed, room = list[OnDemand](), Counter[str](), None
        for other in sorted(others, key=lambda other: other.used):
            if room is None and await self._is_idle(other, snapshot, now, spared):
                leaving.append(other)
                freed.update(other.place.shares(other.need))
                room = await self._room(model, freed)
        if room is None and len(leaving) < len(others):
            return False
        where = room.gpus if room is not None and self._memory.is_measured else ()  # otherwise all of them together
        for one in leaving:
            if not where or set(where) & set(one.place.gpus):
                self._unload(one, f"{model.model.name} needs its memory")
        return False

    async def _load(self, model: OnDemand, room: Place, now: float) -> None:
        log.info("%s is loaded: somebody asks for it", model.model.name)
        model.state, model.started, model.moved, model.waits_since = "loading", now, now, FOREVER
        try:
            model.child = await self._supervisor.start(room.given_to(model.service))
        except (OSError, ValueError) as error:
            self._fail(model, f"its worker does not start: {one_line(error)}", now)

    def _workers(self, model: OnDemand, snapshot: Snapshot) -> list[WorkerInfo]:
        """Those that were started here; another's says nothing of this one."""
        found = [info for name in model.model.models for info in snapshot.workers.get(name, ())]
        return [info for info in found if info.started_by == self._id]

    async def _offer(self) -> None:
        now = time.monotonic()
        told = [model.told(now) for model in self._models]
        states = [(model.state, model.error) for model in told]
        if states == [(model.state, model.error) for model in self._offered] and now - self._offered_at < OFFER_EVERY_S:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._keys.loader(self._id), encode(Offer(id=self._id, models=told)), px=OFFER_MS)
            pipe.zadd(self._keys.loaders(), {self._id: time.time()})
            pipe.zremrangebyscore(self._keys.loaders(), 0, time.time() - FORGOTTEN_S)  # who was killed
            pipe.expire(self._keys.loaders(), FORGOTTEN_S)
            await pipe.execute()
        self._offered, self._offered_at = told, now
