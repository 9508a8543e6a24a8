"""The acts on job streams: enqueue, claim, re-issue, settle. PROTOCOL: "Who may do what"."""

import asyncio
import hashlib
import random
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import msgspec
from redis.exceptions import ResponseError

from shared.connection import Bus
from shared.errors import QueueFull
from shared.keys import CLASSES, GROUP, Keys
from shared.line import Command, Script
from shared.logging import get_logger
from shared.messages import INLINE_PAYLOAD_BYTES, Job, decode_job, encode

log = get_logger(__name__)

DispatchMethod = Literal["pull", "shortest_queue", "lottery"]

LEASE_MS = 2500  # of workers and gateways alike
LEASE_RENEW_S = 0.5
LOOP_HANGS_AFTER_S = 10.0  # an event loop that has not moved for so long loses its process the lease
SUSPECT_AFTER_CRASHES = 2  # such a job runs alone, so that its next crash is its own; then it is buried
LOOK_AGAIN_MS = 50  # at most, between two looks of a worker with a handicap
PAYLOAD_TTL_MS = 15_000  # of what lies aside, unless its gateway renews it
BURIED_PAYLOAD_TTL_MS = 24 * 3_600_000  # of that of a dead letter
CANCELLED_SLACK_MS = 60_000  # that a cancellation outlives the job's deadline


def script(name: str) -> Script:
    source = files("shared").joinpath("lua", f"{name}.lua").read_text()
    return Script(source, hashlib.sha1(source.encode()).hexdigest())


class Entry(NamedTuple):
    """Where a job lies: its stream, the id therein, and the worker if the stream is an inbox."""

    stream: str
    id: str
    addressed_to: str = ""


class Claim(NamedTuple):
    entry: Entry
    job: Job


class JobQueue:
    """The streams of all models."""

    def __init__(self, redis: Bus, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._enqueue, self._claim, self._reissue = script("enqueue"), script("claim"), script("reissue")
        self._forget, self._groups = script("forget"), script("groups")

    # -- gateway ------------------------------------------------------------------------------------------------

    async def enqueue(self, jobs: Sequence[Job], max_queue: int, method: DispatchMethod) -> list[Entry]:
        """All jobs of one request (one model, one class), or none. Raises QueueFull."""
        first, keys = jobs[0], self._keys
        reply = await self._redis.line.run(
            self._enqueue,
            [*keys.job_streams(first.model), keys.workers(first.model)],
            [
                GROUP,
                max_queue,
                CLASSES.index(first.job_class) + 1,
                method,
                keys.worker(first.model, ""),
                keys.inbox(first.model, ""),
                random.getrandbits(31),
                *map(encode, jobs),
            ],
        )
        if reply[0] == 0:
            raise QueueFull(f"{reply[1]} requests wait for '{first.model}' already; try again later.")
        return [Entry(*(part.decode() for part in reply[i : i + 3])) for i in range(1, len(reply), 3)]

    async def put_aside(self, request: str, payloads: bytes) -> None:
        """What `set_aside` has made, where the workers look for it; before the first job, and again before a re-issue:
        a Redis without persistence may have lost it. To be renewed, so that it goes with its gateway. Not on the line,
        where all would wait for its megabytes."""
        await self._redis.set(self._keys.payload(request), payloads, px=PAYLOAD_TTL_MS, nx=True)

    async def reissue(self, old: Entry, job: Job) -> Entry:
        """The job's next attempt at the front class, in place of its old entry."""
        front = self._keys.jobs(job.model, CLASSES[0])
        entry = await self._redis.line.run(self._reissue, [old.stream, front], [GROUP, old.id, encode(job)])
        return Entry(front, entry.decode())

    async def consumers(self, model: str) -> set[str]:
        """Workers to whom entries of the model's streams were delivered and are not settled."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream in self._keys.job_streams(model):
                pipe.xpending(stream, GROUP)
            replies = await pipe.execute(raise_on_error=False)
        summaries = [reply for reply in replies if isinstance(reply, dict)]  # a missing group answers with an error
        return {row["name"].decode(errors="replace") for summary in summaries for row in summary["consumers"]}

    async def pending_of(self, model: str, worker: str) -> set[Entry]:
        """What was delivered to one worker and is not settled."""
        streams = self.streams_of(model, worker)
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream in streams:
                pipe.xpending_range(stream, GROUP, "-", "+", 1000, consumername=worker)
            replies = await pipe.execute(raise_on_error=False)  # a missing group answers with an error
        return {
            Entry(stream, row["message_id"].decode())
            for stream, rows in zip(streams, replies, strict=True)
            for row in (rows if isinstance(rows, list) else ())
        }

    async def missing(self, entries: Sequence[Entry]) -> set[Entry]:
        """Those of the entries that are in no stream any more."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.xrange(entry.stream, entry.id, entry.id, 1)
            replies = await pipe.execute()
        return {entry for entry, rows in zip(entries, replies, strict=True) if not rows}

    # -- worker -------------------------------------------------------------------------------------------------

    def streams_of(self, model: str, worker: str) -> list[str]:
        """In the order in which a worker serves them."""
        return [self._keys.inbox(model, worker), *self._keys.job_streams(model)]

    async def create_groups(self, model: str, worker: str) -> None:
        """Of the streams of a worker that is about to register."""
        await self._redis.line.run(self._groups, self.streams_of(model, worker), [GROUP, ""])

    async def _restore_groups(self, model: str, worker: str) -> bool:
        """Whether any were made: a Redis without persistence came back empty. Without a lease it is the worker that is
        gone from it: what it made now nobody would clean up."""
        streams, lease = self.streams_of(model, worker), self._keys.worker(model, worker)
        made = bool(await self._redis.line.run(self._groups, streams, [GROUP, lease]))
        if made:
            log.warning("the consumer groups of %s were gone", model)
        return made

    async def claim(self, model: str, worker: str, free: int, block_ms: int, handicap_ms: int = 0) -> list[Claim]:
        """At most this worker's share of what waits; where nothing does, the first job to come within `block_ms`. With
        a handicap, what is not addressed to it only once it has waited for so long: then it may return early, with
        nothing.

        Never cancel a blocking call: what it was being given would stay in the pending list.
        """
        try:
            rows = await self._redis.line.run(
                self._claim,
                [*self.streams_of(model, worker), self._keys.workers(model)],
                [GROUP, worker, free, self._keys.worker(model, ""), handicap_ms],
            )
            if not rows and block_ms and handicap_ms:
                await asyncio.sleep(min(handicap_ms / 2, LOOK_AGAIN_MS) / 1000)
            elif not rows and block_ms:
                rows = await self._read(worker, self.streams_of(model, worker), ">", count=1, block=block_ms)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            if not await self._restore_groups(model, worker):
                return []
            return await self.claimed_before(model, worker)  # of the streams whose group was there
        return await self._claims(rows)

    async def next(self, model: str, worker: str, block_ms: int) -> list[Claim]:
        """The first job to come within `block_ms`, if one does. As `claim` of a blocking call: never cancel it."""
        try:
            return await self._claims(
                await self._read(worker, self.streams_of(model, worker), ">", count=1, block=block_ms)
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return []  # which the next claim mends

    async def claimed_before(self, model: str, worker: str) -> list[Claim]:
        """This worker's own pending list: what a lost read reply had delivered is in it."""
        return await self._claims(await self._read(worker, self.streams_of(model, worker), "0"))

    async def claim_inbox(self, model: str, worker: str) -> list[Claim]:
        """All that was addressed to this worker and not claimed yet: a worker that leaves hands it back."""
        return await self._claims(await self._read(worker, [self._keys.inbox(model, worker)], ">"))

    async def leave(self, model: str, worker: str) -> bool:
        """Take this worker's consumers and its inbox away; False if something was left in them, for the janitor."""
        inbox, *streams = self.streams_of(model, worker)
        clean = [await self._redis.line.run(self._forget, [stream], [GROUP, worker]) for stream in streams]
        if await self._redis.xlen(inbox):
            return False
        await self._redis.delete(inbox)
        return all(clean)

    async def _read(
        self, worker: str, streams: Sequence[str], after: str, count: int = 1000, block: int | None = None
    ) -> list[Any]:
        """(stream, entry, job) of each; the job is None if the entry was deleted while it was pending."""
        blocks = () if block is None else ("BLOCK", block)
        line = self._redis.line if block is None else self._redis.reading
        where = ("STREAMS", *streams, *(after for _ in streams))
        reply = await line.ask("XREADGROUP", "GROUP", GROUP, worker, "COUNT", count, *blocks, *where)
        return [
            (stream, entry, fields[1] if fields and fields[0] == b"job" else None)
            for stream, rows in reply or []
            for entry, fields in rows
        ]

    async def _claims(self, rows: Iterable[Any]) -> list[Claim]:
        claims, unreadable = [], []
        for stream, entry, blob in rows:
            where = Entry(stream.decode(), entry.decode())
            try:
                claims.append(Claim(where, decode_job(blob)))
            except (msgspec.MsgspecError, TypeError) as error:
                log.error("dropped entry %s of %s, which is no job: %s", where.id, where.stream, error)
                unreadable.append(where)
        if unreadable:
            await self._redis.line.batch(settle(unreadable))
        return claims


def set_aside(jobs: Sequence[Job]) -> tuple[Sequence[Job], bytes | None]:
    """Where the payloads of one request are large: jobs that only tell which one is theirs, and the list of them, each
    payload once (n choices of a prompt share theirs)."""
    distinct = list({id(job.payload): job.payload for job in jobs}.values())
    blob = encode(distinct)
    if len(blob) <= INLINE_PAYLOAD_BYTES:
        return jobs, None
    index = {id(payload): i for i, payload in enumerate(distinct)}
    return [msgspec.structs.replace(job, payload=index[id(job.payload)]) for job in jobs], blob


def settle(entries: Iterable[Entry]) -> list[Command]:
    """Acknowledge and delete, so that a stream's length is what waits and runs. Idempotent."""
    ids: dict[str, list[str]] = {}
    for entry in entries:
        ids.setdefault(entry.stream, []).append(entry.id)
    return [
        command for stream, some in ids.items() for command in (("XACK", stream, GROUP, *some), ("XDEL", stream, *some))
    ]
