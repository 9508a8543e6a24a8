"""What a quiet system may hold in Redis, and what it may not: it must look like one that has just been started."""

from collections.abc import Iterator, Sequence
from typing import Any

import redis

from shared.keys import GROUP, Keys
from tests.conftest import WITHOUT_TTL
from tests.fault.chaos.mix import MODEL


def find(port: int, workers: Sequence[str], gateways: int) -> list[str]:
    """One line for each leak; `workers` are the ids of those that live."""
    with redis.Redis(port=port, decode_responses=True, socket_timeout=10) as client:
        return sorted(_leaks(client, set(workers), gateways))


def _leaks(client: Any, workers: set[str], gateways: int) -> Iterator[str]:
    keys = Keys()
    inboxes = {keys.inbox(MODEL, worker) for worker in workers}
    for stream in (*keys.job_streams(MODEL), *inboxes):
        yield from _left_in(client, stream, workers)
    found = set(client.scan_iter(count=1000))
    yield from (f"inbox of nobody: {key}" for key in found if key.startswith("tokenbus:inbox:") and key not in inboxes)
    yield from (f"payload left: {key}" for key in found if key.startswith("tokenbus:payload:"))
    leases = [key for key in found if key.startswith(keys.gateway(""))]
    if len(leases) != gateways:
        yield f"leases of {gateways} gateways expected: {leases}"
    if (indexed := set(client.zrange(keys.workers(MODEL), 0, -1))) != workers:
        yield f"workers in the index: {sorted(indexed)}, alive: {sorted(workers)}"
    yield from (
        f"key without a TTL: {key}" for key in found if client.ttl(key) == -1 and not key.startswith(WITHOUT_TTL)
    )


def _left_in(client: Any, stream: str, workers: set[str]) -> Iterator[str]:
    try:
        if length := client.xlen(stream):
            yield f"{stream} holds {length} entries: {client.xrange(stream, count=2)}"[:600]
        if pending := client.xpending(stream, GROUP)["pending"]:
            yield f"{stream} has {pending} pending"
        consumers = {row["name"] for row in client.xinfo_consumers(stream, GROUP)}
    except redis.ResponseError as error:
        yield f"{stream}: {error}"
        return
    if strangers := consumers - workers:
        yield f"consumers of {stream} without a worker: {sorted(strangers)}"
