"""The life of a worker: wait for Redis, load the engine, then one session after another until told to leave."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from shared.connection import BUS_ERRORS, Redis, wait_for_redis
from shared.errors import EngineFailed
from shared.garbage import spare_what_is_loaded
from shared.logging import get_logger
from worker.engines.base import Engine, EngineInfo, Output
from worker.room import House, Room
from worker.session import Leaving, Session

log = get_logger(__name__)

ENGINE_LOOK_S = 0.1
MakeSession = Callable[[EngineInfo, list[str], int, Room], AbstractAsyncContextManager[Session]]
SESSION_ERRORS: tuple[type[BaseException], ...] = (BaseExceptionGroup, *BUS_ERRORS)  # its tasks raise in groups


class Worker:
    """Keeps its engine while sessions come and go: a worker that lost its lease comes back under a new id."""

    def __init__(
        self,
        redis: Redis,
        redis_url: str,
        engine: Engine,
        make_session: MakeSession,
        names: list[str],
        hang_timeout: float,
        house: House,
    ) -> None:
        """names: of the model; with each adapter it has one more for each of them. house: of all sessions of the
        process."""
        self._redis = redis
        self._redis_url = redis_url
        self._engine = engine
        self._make_session = make_session
        self._hang_timeout = hang_timeout
        self._house = house
        self._info: EngineInfo | None = None
        self._names = names
        self._sessions: dict[int, Session] = {}  # by adapter
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Drain and return from `run`. Idempotent."""
        self._stopping.set()
        for session in self._sessions.values():
            session.leave(Leaving.DRAIN)

    async def load(self) -> None:
        """Of several in one process one after the other: each sees how much memory is left. Raises StartupError."""
        if not await self._unless_stopped(wait_for_redis(self._redis, self._redis_url)):
            return
        loading: asyncio.Future[EngineInfo] = self._load_in_thread()
        if await self._unless_stopped(loading):
            self._info = loading.result()

    async def serve(self) -> None:
        """Until told to stop; at once if that was while it was loading."""
        if self._info is None:
            return
        self._engine.start(self._deliver)
        try:
            await self._serve(self._info)
        finally:
            await self._engine.stop()

    async def _serve(self, info: EngineInfo) -> None:
        """The model, and as models of their own, the model with each adapter."""
        room = Room(info.slots, self._house)
        served = [(replace(info, adapters={}), self._names)]
        served += [(info.with_adapter(name), [f"{own}:{name}" for own in self._names]) for name in info.adapters]
        await together(
            [self._serve_one(info, names, adapter, room) for adapter, (info, names) in enumerate(served)], self.stop
        )

    async def _serve_one(self, info: EngineInfo, names: list[str], adapter: int, room: Room) -> None:
        while not self._stopping.is_set():
            async with self._make_session(info, names, adapter, room) as session:
                self._sessions[adapter] = session
                try:
                    left = await session.run()
                except SESSION_ERRORS as error:
                    _raise_unless_bus_error(error)
                    log.warning("the bus was lost at registration: %s", error)
                    await self._unless_stopped(wait_for_redis(self._redis, self._redis_url))
                    continue
            if left is Leaving.DRAIN or session.asked_to_drain:
                return
            log.warning("the lease was lost; coming back under a new id once the engine moves")
            await self._until_engine_moves()

    async def _until_engine_moves(self) -> None:
        """Its requests were aborted with the session: a step thread that lives takes note of it, and has nothing left
        to do but for other sessions. Raises EngineFailed for one that hangs: a fresh process is all that helps."""
        began = time.monotonic()
        while self._engine.stalled_for() > time.monotonic() - began:
            if time.monotonic() - began > self._hang_timeout:
                raise EngineFailed("the engine hangs")
            await asyncio.sleep(ENGINE_LOOK_S)

    def _deliver(self, outputs: list[Output]) -> None:
        for session in self._sessions.values():
            session.deliver(outputs)

    def _load_in_thread(self) -> asyncio.Future[EngineInfo]:
        """In a daemon thread: SIGTERM must not wait for gigabytes of weights."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[EngineInfo] = loop.create_future()

        def settle(info: EngineInfo | None, error: BaseException | None) -> None:
            if not loaded.done():
                loaded.set_exception(error) if error else loaded.set_result(info)  # type: ignore[arg-type]

        def load() -> None:
            try:
                outcome: tuple[EngineInfo | None, BaseException | None] = (self._engine.load(), None)
                spare_what_is_loaded()
            except BaseException as error:
                outcome = (None, error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, *outcome)

        threading.Thread(target=load, name="load", daemon=True).start()
        return loaded

    async def _unless_stopped(self, awaitable: Awaitable[Any]) -> bool:
        """Await it, or the order to stop, whichever comes first; False if it was the order."""
        task = asyncio.ensure_future(awaitable)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True


async def together(runs: Iterable[Coroutine[Any, Any, None]], stop: Callable[[], None]) -> None:
    """Until all have ended. If one fails the others are told to stop, and its error is raised when they have."""
    tasks = [asyncio.create_task(run) for run in runs]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    if not all(task.done() for task in tasks):
        stop()
        await asyncio.wait(tasks)
    for task in tasks:
        task.result()


def _raise_unless_bus_error(error: BaseException) -> None:
    """A lost connection is waited out; anything else ends the worker, with the plain error of its group."""
    while isinstance(error, BaseExceptionGroup):
        other = error.split(BUS_ERRORS)[1]
        if other is None:
            return
        error = other.exceptions[0]
    if not isinstance(error, BUS_ERRORS):
        raise error
