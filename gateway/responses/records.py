"""Stored responses in Redis: each a hash of the response, its input items, how it ended, and the job while it runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from gateway.recording import Recording
from shared.connection import Bus
from shared.durable import LOG_TTL_MS, DurableLogs
from shared.errors import Unreadable
from shared.keys import Keys
from shared.line import Command
from shared.messages import INLINE_PAYLOAD_BYTES, End, Job, decode_end, decode_job, encode
from shared.queue import script

ID = re.compile(r"resp_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Record:
    response: dict[str, Any]
    items: list[dict[str, Any]]  # of the conversation before, and its own
    end: End | None = None
    job: Job | None = None  # until it has ended
    size: int = 0  # in Redis, bytes, without the job


class Records:
    """Of all gateways."""

    def __init__(self, redis: Bus, keys: Keys, ttl_ms: int) -> None:
        self._redis = redis
        self._keys = keys
        self._ttl_ms = ttl_ms
        self._logs = DurableLogs(redis, keys)
        self._create, self._finish = script("create"), script("finish")

    async def create(self, job: Job, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Before the job is queued: who claims it writes its log. What is there already stays as it is."""
        record = (orjson.dumps(response), orjson.dumps(items), encode(job), self._ttl_ms)
        create = ("EVAL", self._create.source, 1, self._keys.response(job.request), *record)
        await self._send([create, *self._logs.began(job)])

    async def load(self, id: str) -> Record | None:
        """Raises Unreadable."""
        if not ID.fullmatch(id):
            return None
        response, items, end, job = await self._redis.hmget(self._keys.response(id), "response", "items", "end", "job")
        if response is None or items is None:
            return None
        try:
            return Record(
                orjson.loads(response),
                orjson.loads(items),
                None if end is None else decode_end(end),
                None if job is None else decode_job(job),
                len(response) + len(items),
            )
        except (msgspec.MsgspecError, ValueError) as error:
            raise Unreadable(f"Response '{id}' cannot be read: {error}") from None

    async def state(self, id: str) -> tuple[bool, bool]:
        """Whether there is one, and whether it has ended."""
        key = self._keys.response(id)
        is_there, has_ended = await self._redis.line.batch([("EXISTS", key), ("HEXISTS", key, "end")])
        return bool(is_there), bool(has_ended)

    async def restore(self, recording: Recording, gateway: str) -> None:
        """As it began, if Redis has lost it; its owner is the gateway, which may have adopted it."""
        assert recording.job is not None
        job = msgspec.structs.replace(recording.job, gateway=gateway)
        await self.create(job, recording.response, recording.items)

    async def finish(self, recording: Recording, gateway: str, response: dict[str, Any]) -> None:
        """Nothing is written if another gateway owns it."""
        owned = (self._keys.response(recording.id), self._keys.owner(recording.id), self._keys.log(recording.id))
        end, pieces = encode(recording.end), len(recording.pieces)
        told = (gateway, orjson.dumps(response), self._ttl_ms, end, LOG_TTL_MS, pieces)
        finish = ("EVAL", self._finish.source, len(owned), *owned, *told)
        commands: list[Command] = [finish, ("SREM", self._keys.owned(gateway), recording.id)]
        found, _ = await self._send(commands)
        if found < 0:
            await self.restore(recording, gateway)
            await self._send(commands)

    async def forget(self, id: str, gateway: str) -> None:
        """The owner stays until its time is over, or a worker would take it for one that Redis has lost."""
        await self._redis.line.batch(
            [
                ("UNLINK", self._keys.response(id)),
                ("UNLINK", self._keys.log(id)),
                ("SREM", self._keys.owned(gateway), id),
            ]
        )

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """Megabytes do not go by the line, where everybody would wait for them."""
        size = sum(len(part) for command in commands for part in command if isinstance(part, bytes))
        if size < INLINE_PAYLOAD_BYTES:
            return await self._redis.line.batch(commands)
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return list(await pipe.execute())
