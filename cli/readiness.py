"""Which parts of a starting stack are not ready yet."""

import time
from collections.abc import Sequence

import httpx2

from registry.directory import take_snapshot
from shared.connection import BUS_ERRORS, Redis
from shared.keys import Keys


class Readiness:
    def __init__(self, redis: Redis, keys: Keys, models: Sequence[str], gateway: str, http: httpx2.AsyncClient) -> None:
        self._redis = redis
        self._keys = keys
        self._models = models
        self._gateway = gateway  # http://host:port
        self._http = http
        self._since = time.time()  # leases of a stack that was just killed say nothing about this one

    async def has_redis(self) -> bool:
        try:
            await self._redis.ping()
        except BUS_ERRORS:
            return False
        return True

    async def missing(self) -> list[str]:
        live = await self._live_models()
        workers = [f"worker {name}" for name in self._models if name not in live]
        return workers if await self._has_gateway() else [*workers, "gateway"]

    async def _live_models(self) -> set[str]:
        try:
            snapshot = await take_snapshot(self._redis, self._keys)
        except BUS_ERRORS:
            return set()
        ours = [info for workers in snapshot.workers.values() for info in workers if info.started >= self._since]
        return {name for info in ours for name in info.names}

    async def _has_gateway(self) -> bool:
        try:
            return (await self._http.get(f"{self._gateway}/readyz")).is_success
        except httpx2.TransportError:
            return False
