"""What a worker asks Redis about its jobs: are they still wanted, what do they say, who waits for them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.connection import Bus
from shared.keys import Keys
from worker.running import RunningJob


@dataclass(frozen=True, slots=True)
class Findings:
    """`void`: jobs that are cancelled, whose payload is gone, or that another attempt has taken over; `orphans`: whose
    gateway is gone, but for durable ones. By the engine's ids."""

    has_lease: bool
    void: set[str]
    orphans: set[str]


class Inquiry:
    def __init__(self, redis: Bus, keys: Keys, model: str, worker: str) -> None:
        self._redis = redis
        self._keys = keys
        self._lease = keys.worker(model, worker)

    async def into(self, new: Sequence[RunningJob]) -> Findings:
        """Of jobs that were just claimed; fetches their payloads where they lie aside."""
        aside = sorted({one.job.request for one in new if isinstance(one.job.payload, int)})
        gateways = sorted({one.job.gateway for one in new if not one.job.is_durable})
        durable = [one for one in new if one.job.is_durable]
        found = await self._fetch(aside)
        *replies, has_lease = await self._redis.line.batch(
            [
                *(("EXISTS", self._keys.cancelled(one.job.id)) for one in new),
                *(("EXISTS", self._keys.gateway(gateway)) for gateway in gateways),
                *(("GET", self._keys.owner(one.job.request)) for one in durable),
                ("EXISTS", self._lease),
            ]
        )
        cancelled, replies = replies[: len(new)], replies[len(new) :]
        lives, owners = replies[: len(gateways)], replies[len(gateways) :]
        living = {gateway for gateway, lives in zip(gateways, lives, strict=True) if lives}
        void = {one.request_id for one, is_cancelled in zip(new, cancelled, strict=True) if is_cancelled}
        void |= _unpack(new, dict(zip(aside, found, strict=True)))
        void |= {one.request_id for one, owner in zip(durable, owners, strict=True) if not _may_write(one, owner)}
        orphans = {one.request_id for one in new if not one.job.is_durable and one.job.gateway not in living}
        return Findings(bool(has_lease), void, orphans)

    async def _fetch(self, requests: Sequence[str]) -> list[Any]:
        """Their payloads, in one round trip; not on the line, where all would wait for their megabytes."""
        if not requests:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for request in requests:
                pipe.get(self._keys.payload(request))
            return list(await pipe.execute())

    async def without_lease(self, gateways: Iterable[str]) -> set[str]:
        asked = list(gateways)
        if not asked:
            await self._redis.line.ask("PING")
            return set()
        replies = await self._redis.line.batch(("EXISTS", self._keys.gateway(gateway)) for gateway in asked)
        return {gateway for gateway, lives in zip(asked, replies, strict=True) if not lives}


def _may_write(durable: RunningJob, owner: bytes | None) -> bool:
    """Into its log, or what it makes is for nobody."""
    return owner is not None and owner.split(b" ")[0] == b"%d" % durable.job.attempt


def _unpack(new: Sequence[RunningJob], blobs: dict[str, bytes | None]) -> set[str]:
    """Gives each job the payload that it only pointed to; returns those whose payload is gone."""
    payloads = {request: msgspec.json.decode(blob) for request, blob in blobs.items() if blob}
    missing = set()
    for one in new:
        index = one.job.payload
        if isinstance(index, dict):
            continue
        if found := payloads.get(one.job.request):
            one.job = msgspec.structs.replace(one.job, payload=found[index])
        else:
            missing.add(one.request_id)
    return missing
