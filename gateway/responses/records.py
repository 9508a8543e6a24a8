"""Stored responses in Redis: each a hash of the response, its input items, how it ended, and the job while it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.recording import Recording
from shared.connection import Bus
from shared.durable import LOG_TTL_MS, DurableLogs
from shared.keys import Keys
from shared.line import Command
from shared.messages import INLINE_PAYLOAD_BYTES, End, Job, decode_end, decode_job, encode
from shared.queue import script


@dataclass(frozen=True, slots=True)
class Record:
    response: dict[str, Any]
    items: list[dict[str, Any]]  # of the conversation before, and its own
    end: End | None = None
    job: Job | None = None  # until it has ended


class Records:
    """Of all gateways."""

    def __init__(self, redis: Bus, keys: Keys, ttl_ms: int) -> None:
        self._redis = redis
        self._keys = keys
        self._ttl_ms = ttl_ms
        self._logs = DurableLogs(redis, keys)
        self._finish = script("finish")

    async def create(self, job: Job, response: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Before the job is queued: who claims it writes its log."""
        key = self._keys.response(job.request)
        record = ("HSET", key, "response", orjson.dumps(response), "items", orjson.dumps(items), "job", encode(job))
        await self._send([record, ("PEXPIRE", key, self._ttl_ms), *self._logs.began(job)])

    async def load(self, id: str) -> Record | None:
        response, items, end, job = await self._redis.hmget(self._keys.response(id), "response", "items", "end", "job")
        if response is None or items is None:
            return None
        return Record(
            orjson.loads(response),
            orjson.loads(items),
            None if end is None else decode_end(end),
            None if job is None else decode_job(job),
        )

    async def finish(self, recording: Recording, gateway: str, response: dict[str, Any]) -> bool:
        """False if another gateway owns it."""
        key, end = self._keys.response(recording.id), encode(recording.end)
        written = orjson.dumps(response)
        keys = [key, self._keys.owner(recording.id), self._keys.log(recording.id)]
        reply = await self._redis.line.run(self._finish, keys, [gateway, written, self._ttl_ms, end, LOG_TTL_MS])
        commands: list[Command] = [("SREM", self._keys.owned(gateway), recording.id)]
        if reply < 0:
            record = ("HSET", key, "response", written, "items", orjson.dumps(recording.items), "end", end)
            commands += [record, ("PEXPIRE", key, self._ttl_ms)]
        await self._send(commands)
        return bool(reply)

    async def forget(self, id: str, gateway: str) -> None:
        """The owner stays until its time is over, or a worker would take it for one that Redis has lost."""
        await self._redis.line.batch(
            [
                ("UNLINK", self._keys.response(id)),
                ("UNLINK", self._keys.log(id)),
                ("SREM", self._keys.owned(gateway), id),
            ]
        )

    async def _send(self, commands: Iterable[Command]) -> None:
        """Megabytes do not go by the line, where everybody would wait for them."""
        commands = list(commands)
        if sum(len(part) for command in commands for part in command if isinstance(part, bytes)) < INLINE_PAYLOAD_BYTES:
            await self._redis.line.batch(commands)
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            await pipe.execute()


def is_sound(id: str) -> bool:
    """It could be the id of a response."""
    prefix, _, rest = id.partition("_")
    return prefix == "resp" and len(rest) == 32 and rest.isascii() and rest.isalnum()
