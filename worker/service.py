"""The life of a worker: wait for Redis, load the engine, then one session after another until told to leave."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from shared.connection import BUS_ERRORS, Redis, wait_for_redis
from shared.errors import EngineFailed
from shared.logging import get_logger
from worker.engines.base import Engine, EngineInfo, Output
from worker.session import Leaving, Session

log = get_logger(__name__)

ENGINE_LOOK_S = 0.1
SESSION_ERRORS: tuple[type[BaseException], ...] = (BaseExceptionGroup, *BUS_ERRORS)  # its tasks raise in groups


class Worker:
    """Keeps its engine while sessions come and go: a worker that lost its lease comes back under a new id."""

    def __init__(
        self,
        redis: Redis,
        redis_url: str,
        engine: Engine,
        make_session: Callable[[EngineInfo], Session],
        hang_timeout: float,
    ) -> None:
        self._redis = redis
        self._redis_url = redis_url
        self._engine = engine
        self._make_session = make_session
        self._hang_timeout = hang_timeout
        self._session: Session | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Drain and return from `run`. Idempotent."""
        self._stopping.set()
        if self._session is not None:
            self._session.leave(Leaving.DRAIN)

    async def run(self) -> None:
        """Raises StartupError for what waiting cannot mend."""
        if not await self._unless_stopped(wait_for_redis(self._redis, self._redis_url)):
            return
        load: asyncio.Future[EngineInfo] = self._load_in_thread()
        if not await self._unless_stopped(load):
            return
        self._engine.start(self._deliver)
        try:
            await self._serve(load.result())
        finally:
            await self._engine.stop()

    async def _serve(self, info: EngineInfo) -> None:
        while not self._stopping.is_set():
            self._session = self._make_session(info)
            try:
                left = await self._session.run()
            except SESSION_ERRORS as error:
                _raise_unless_bus_error(error)
                log.warning("the bus was lost at registration: %s", error)
                await self._unless_stopped(wait_for_redis(self._redis, self._redis_url))
                continue
            if left is Leaving.DRAIN or self._session.asked_to_drain:
                return
            log.warning("the lease was lost; coming back under a new id once the engine moves")
            await self._until_engine_is_idle()

    async def _until_engine_is_idle(self) -> None:
        """All its requests were aborted with the session, so that a step thread that lives has nothing left to do.
        Raises EngineFailed for one that hangs: a fresh process is all that helps."""
        until = time.monotonic() + self._hang_timeout
        while self._engine.stalled_for() > 0:
            if time.monotonic() > until:
                raise EngineFailed("the engine hangs")
            await asyncio.sleep(ENGINE_LOOK_S)

    def _deliver(self, outputs: list[Output]) -> None:
        if self._session is not None:
            self._session.deliver(outputs)

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


def _raise_unless_bus_error(error: BaseException) -> None:
    """A lost connection is waited out; anything else ends the worker, with the plain error of its group."""
    while isinstance(error, BaseExceptionGroup):
        other = error.split(BUS_ERRORS)[1]
        if other is None:
            return
        error = other.exceptions[0]
    if not isinstance(error, BUS_ERRORS):
        raise error
