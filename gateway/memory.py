"""The memory of Redis. Above four fifths of it nothing new is taken in: beyond all of it Redis refuses every write, the
leases of workers among them."""

import asyncio
import math
import random

from shared.connection import BUS_ERRORS, Redis
from shared.errors import QueueFull
from shared.logging import get_logger

log = get_logger(__name__)


class MemoryBrake:
    """Knows how much more Redis can take, from a look now and then and from what was taken in since."""

    EVERY_S = 0.5
    FULL_AT = 0.8
    COPIES = 2  # of what comes in: the value, and the buffer that it arrives in

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._room = math.inf  # bytes, at the last look; a Redis that does not say is no reason to stop
        self._since = 0  # bytes taken in since the last look was asked for
        self._before = 0  # and in the time before it: Redis may not have had them yet
        self._policy = "noeviction"

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._look()
            except BUS_ERRORS as error:
                log.debug("no look at the memory of Redis: %s", error)
            await asyncio.sleep(self.EVERY_S)

    async def _look(self) -> None:
        self._before, self._since = self._since, 0
        memory = await self._redis.info("memory")
        most = memory.get("maxmemory") or memory.get("total_system_memory") or math.inf
        self._room = most * self.FULL_AT - memory["used_memory"]
        policy = memory.get("maxmemory_policy", self._policy)
        if policy not in ("noeviction", self._policy):
            log.warning("Redis has maxmemory-policy %s: it may throw away queued jobs; set noeviction", policy)
        self._policy = policy

    def admit(self, size: int) -> None:
        """Raises QueueFull if so many bytes more are too many."""
        size *= self.COPIES
        if self._before + self._since + size > self._room:
            raise bus_full()
        self._since += size


def bus_full() -> QueueFull:
    """When there will be room is not known; but they should not come back all at once."""
    return QueueFull("The message bus is full; try again later.", retry_after=random.uniform(1, 5))
