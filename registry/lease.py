"""The worker's side of the registry: names bound to weights, and a lease that a thread of its own renews.

The thread has its own connection, since loading a model or a long prefill can hold the event loop for seconds.
A thread would also keep a hung worker alive: it renews only while `healthy()` says that the rest moves.
"""

import threading
import time
from collections.abc import Callable

import msgspec
from redis.exceptions import RedisError

from registry.directory import REMEMBERED_S, read_records, take_snapshot
from shared.connection import Bus, Redis, connect_thread
from shared.errors import StartupError
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import ModelRecord, WorkerInfo, encode
from shared.queue import LEASE_MS, LEASE_RENEW_S, script

log = get_logger(__name__)

BIND_EVERY_S = 1.0  # how often names are confirmed
BINDING_FREE_AFTER_S = 5


def _record(info: WorkerInfo) -> bytes:
    return encode(
        ModelRecord(
            model=info.model,
            fingerprint=info.fingerprint,
            max_model_len=info.max_model_len,
            engine=info.engine,
            worker=info.id,
            last_seen=0,
        )
    )


def _bind_args(info: WorkerInfo) -> list[bytes | str | int]:
    return [BINDING_FREE_AFTER_S, int(REMEMBERED_S), _record(info), *info.names]


async def bind_names(redis: Bus, keys: Keys, info: WorkerInfo) -> None:
    """Raises StartupError when a name means other weights. From here on the janitor knows of the worker: should it
    die before it has a lease, what it has made goes with it."""
    refused = await redis.line.run(script("bind"), [keys.models()], _bind_args(info))
    if refused:
        name, worker, model, fingerprint = (part.decode() for part in refused)
        why = "with other weights" if fingerprint != info.fingerprint else "and gives the names in another order"
        raise StartupError(f"the name '{name}' is taken: worker {worker} serves '{model}' under it, {why}")
    await redis.zadd(keys.workers(info.model), {info.id: time.time()})


async def register(redis: Bus, keys: Keys, info: WorkerInfo) -> None:
    """Bind the names, then write the lease. Raises StartupError when a name means other weights."""
    await bind_names(redis, keys, info)
    await redis.set(keys.worker(info.model, info.id), encode(info), px=LEASE_MS)


async def announce(redis: Bus, keys: Keys, info: WorkerInfo) -> None:
    """Rewrite a lease that is still held, without waiting for its next renewal."""
    leases = [keys.worker(info.model, info.id), keys.workers(info.model)]
    await redis.line.run(script("renew"), leases, [LEASE_MS, encode(info), info.id])


async def deregister(redis: Redis, keys: Keys, info: WorkerInfo, *, keep_index: bool = False) -> None:
    """Give the lease up, and the names if nobody else serves them. `keep_index`: for the janitor, if something is left
    to clean up."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.delete(keys.worker(info.model, info.id))
        if not keep_index:
            pipe.zrem(keys.workers(info.model), info.id)
        await pipe.execute()
    if not (await take_snapshot(redis, keys)).workers.get(info.model):
        await _free_names(redis, keys, info)


async def _free_names(redis: Redis, keys: Keys, info: WorkerInfo) -> None:
    """They stay known (503, not 404), but other weights may have them at once."""
    for name, record in (await read_records(redis, keys)).items():
        if name in info.names and record.fingerprint == info.fingerprint:
            freed = msgspec.structs.replace(record, last_seen=record.last_seen - BINDING_FREE_AFTER_S)
            await redis.hset(keys.models(), name, encode(freed))


class LeaseKeeper:
    """Renews one registered worker's lease until stopped or lost; a lost lease is never taken back."""

    def __init__(
        self,
        redis_url: str,
        keys: Keys,
        info: Callable[[], WorkerInfo],
        healthy: Callable[[], bool],
        on_lost: Callable[[], None],
    ) -> None:
        self._url = redis_url
        self._keys = keys
        self._info = info
        self._healthy = healthy
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Idempotent. A renewal under way finds no lease to renew once it is given up."""
        self._stop.set()

    def join(self) -> None:
        """Stop, and wait for a renewal under way."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        client = connect_thread(self._url)
        renew, bind = client.register_script(script("renew").source), client.register_script(script("bind").source)
        bound_at = renewed_at = time.monotonic()
        while not self._stop.wait(LEASE_RENEW_S):
            if not self._healthy():
                log.error("the worker does not move; its lease is not renewed")
                if time.monotonic() - renewed_at > LEASE_MS / 1000:
                    self._on_lost()  # or it would go on claiming what it cannot run
                    return
                continue
            info = self._info()
            leases = [self._keys.worker(info.model, info.id), self._keys.workers(info.model)]
            try:
                if not renew(keys=leases, args=[LEASE_MS, encode(info), info.id]):
                    self._on_lost()
                    return
                renewed_at = time.monotonic()
                if time.monotonic() - bound_at > BIND_EVERY_S:
                    if refused := bind(keys=[self._keys.models()], args=_bind_args(info)):
                        log.error("the name %r is bound to other weights meanwhile", refused[0].decode())
                    bound_at = time.monotonic()
            except (RedisError, OSError) as error:
                log.warning("the lease could not be renewed: %s", error)
        client.close()
