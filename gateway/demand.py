"""Models that are loaded on demand: what is asked for stays loaded, or is loaded while its requests wait."""

import asyncio
import time

from registry.directory import Directory
from shared.connection import BUS_ERRORS, Redis
from shared.errors import QueueFull, TokenbusError
from shared.keys import Keys
from shared.logging import get_logger

log = get_logger(__name__)

Waiter = tuple[float, asyncio.Future[None]]  # until when (monotonic s) it waits


class Demand:
    """Tells the loaders what is asked for, four times a second, and not for each request."""

    EVERY_S = 0.25
    KEPT_S = 3600
    LONGEST_S = 60.0  # that a request waits for a load

    def __init__(self, redis: Redis, keys: Keys, directory: Directory, max_waiting: int) -> None:
        self._redis = redis
        self._keys = keys
        self._directory = directory
        self._max_waiting = max_waiting
        self._asked: set[str] = set()  # models, since the loaders were told
        self._waiting: dict[str, list[Waiter]] = {}  # by name

    def note(self, name: str) -> bool:
        """Somebody asks for it. Whether it is loaded on demand."""
        found = self._directory.snapshot.loadable.get(name)
        if found is not None:
            self._asked.add(found.names[0])
        return found is not None

    def until_live(self, name: str) -> asyncio.Future[None]:
        """Done when somebody serves the name, at once if it is not loaded on demand. Fails with ModelLoading if that
        takes too long or cannot be, and with QueueFull if too many wait. Cancel it when nobody waits any more."""
        done = asyncio.get_running_loop().create_future()
        if not self.note(name) or self._directory.snapshot.is_live(name):
            done.set_result(None)
            return done
        waiters = self._waiting.setdefault(name, [])
        if len(waiters) >= self._max_waiting:
            done.set_exception(
                QueueFull(f"Too many requests wait for '{name}' to be loaded; try again.", retry_after=5)
            )
        elif not self._settle(name, done, now := time.monotonic(), now + self.LONGEST_S):
            waiters.append((now + self.LONGEST_S, done))
        return done

    def fail_all(self, error: TokenbusError) -> None:
        for waiters in self._waiting.values():
            for _, done in waiters:
                if not done.done():
                    done.set_exception(error)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.EVERY_S)
            self._look()
            if not self._asked:
                continue
            asked, self._asked = self._asked, set()
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    pipe.zadd(self._keys.demand(), dict.fromkeys(asked, time.time()))
                    pipe.expire(self._keys.demand(), self.KEPT_S)
                    await pipe.execute()
            except BUS_ERRORS as error:
                log.debug("loaders were not told: %s", error)
                self._asked |= asked

    def _look(self) -> None:
        now = time.monotonic()
        for name, waiters in list(self._waiting.items()):
            left = [(until, done) for until, done in waiters if not self._settle(name, done, now, until)]
            if left:
                self._waiting[name] = left
                self.note(name)
            else:
                del self._waiting[name]

    def _settle(self, name: str, done: "asyncio.Future[None]", now: float, until: float) -> bool:
        """Whether it waits no more."""
        if done.done():
            return True
        snapshot = self._directory.snapshot
        found = snapshot.loadable.get(name)
        if found is None or snapshot.is_live(name):  # what nobody loads any more is looked up as any other name
            done.set_result(None)
        elif found.state == "failed" or now > until:
            done.set_exception(self._directory.unavailable(name, f"'{name}' is not there yet.", retry_after=5))
        return done.done()
