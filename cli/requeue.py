"""Runs a dead letter once more. Its client is long gone: the command itself is the gateway of the new run."""

import asyncio
import sys
import time
from contextlib import suppress

import msgspec

from cli.bus import count
from cli.letters import Letter, Payloads, read_letters, remove
from gateway.asked import Asked
from gateway.demand import Demand
from gateway.hub import Hub
from gateway.inflight import Mailbox, Update
from gateway.lease import GatewayLease
from gateway.metrics import Metrics
from gateway.watch import Watch
from registry.directory import Directory
from shared.connection import BUS_ERRORS, Redis
from shared.errors import StartupError, TokenbusError, WorkerLost
from shared.keys import Keys
from shared.messages import Job, new_process_id
from shared.queue import SUSPECT_AFTER_CRASHES

MAX_QUEUE = 1024
STALL_TIMEOUT_S = 300.0
NO_WORKER_TIMEOUT_S = 60.0
LOOKS, LOOK_S = 10, 0.1


async def requeue(redis: Redis, url: str, keys: Keys, letter: Letter, within: float) -> int:
    """0 if it finished, and then the letter is gone. Else it stays; if it was buried again, in its newer form only."""
    job, directory = await _sound(redis, keys, letter)
    # It was cancelled when it was buried, for whoever would still claim it.
    await redis.delete(keys.cancelled(job.id))
    again = as_suspect(job, within)
    started, reply = time.monotonic(), Reply()
    try:
        trouble = await _run(redis, GatewayLease(url, keys.gateway(again.gateway)), keys, again, directory, reply)
    except asyncio.CancelledError:
        reply.end_line()
        _say("cancelled; the dead letter stays")
        raise
    if trouble is None:
        await remove(redis, keys, letter)
        _say(f"{reply.summary()} after {time.monotonic() - started:.1f} s; the dead letter is removed")
        return 0
    reply.end_line()
    _say(f"{trouble}; {await _what_is_left(redis, keys, letter, trouble)}")
    return 1


async def _sound(redis: Redis, keys: Keys, letter: Letter) -> tuple[Job, Directory]:
    """Raises StartupError for what cannot be run."""
    job, payloads = letter.job, Payloads(redis, keys)
    if job is None:
        raise StartupError(f"entry {letter.entry} is not readable")
    directory = Directory(redis, keys)
    await directory.refresh()
    if not any(info.state == "ready" for info in directory.snapshot.workers.get(job.model, ())):
        raise StartupError(f"nobody alive serves '{job.model}'; the dead letter stays")
    await payloads.keep(job)
    if await payloads.of(job) is None:
        raise StartupError(f"the prompt of {job.id} is gone: a large one is kept for 24 h")
    return job, directory


def as_suspect(job: Job, within: float) -> Job:
    """From its beginning, but alone, and one more crash buries it again. A payload that lies aside stays where it is:
    other letters of its request may need it."""
    return msgspec.structs.replace(
        job,
        gateway=new_process_id(),
        deadline=int((time.time() + within) * 1000),
        attempt=0,
        crashes=SUSPECT_AFTER_CRASHES,
        resume=None,
        logged=None,  # a stored response has ended: its answer comes here
    )


async def _run(
    redis: Redis, lease: GatewayLease, keys: Keys, job: Job, directory: Directory, reply: "Reply"
) -> str | None:
    """What went wrong, if anything did."""
    metrics = Metrics()
    hub = Hub(redis, keys, job.gateway, metrics, MAX_QUEUE, "pull")
    demand = Demand(redis, keys, directory, MAX_QUEUE)
    watch = Watch(redis, keys, hub, directory, demand, metrics, STALL_TIMEOUT_S, NO_WORKER_TIMEOUT_S)
    async with asyncio.TaskGroup() as tasks:
        running = (lease, hub, directory, demand, watch)
        parts = [tasks.create_task(part.run(), name=type(part).__name__) for part in running]
        try:
            await hub.ready()
            await lease.taken.wait()
            return await _ask(hub, job, reply)
        finally:
            hub.cancel([job.id])
            lease.stop()
            await hub.close()
            for part in parts:
                part.cancel()


async def _ask(hub: Hub, job: Job, reply: "Reply") -> str | None:
    """What went wrong, as a value: what is raised among tasks comes out as a group."""
    mailbox = Mailbox()
    try:
        await hub.submit([job], mailbox, Asked(""), slots=1)
        while not reply.finished:
            for update in await mailbox.get():
                reply.take(update)
    except TokenbusError as error:
        return f"{error.code}: {error.message.rstrip('.')}"
    except BrokenPipeError:
        with suppress(OSError):  # or the interpreter would complain of it once more at its end
            sys.stdout.close()
        return "nobody reads the output any more"
    except BUS_ERRORS as error:
        return f"the bus is not available: {error}"
    return None


async def _what_is_left(redis: Redis, keys: Keys, letter: Letter, trouble: str) -> str:
    """Only the newest letter of a job is kept."""
    *older, newest = await _letters_of(redis, keys, letter)
    for _ in range(LOOKS if trouble.startswith(WorkerLost.code) else 0):
        if older:
            break
        await asyncio.sleep(LOOK_S)  # a burial is an errand that nobody waits for
        *older, newest = await _letters_of(redis, keys, letter)
    for other in older:
        await redis.xdel(keys.dead(letter.model), other.entry)
    return f"buried again, as entry {newest.entry}" if older else "the dead letter stays"


async def _letters_of(redis: Redis, keys: Keys, letter: Letter) -> list[Letter]:
    """Those of the same job; itself at least, should somebody have removed it."""
    found = [one for one in await read_letters(redis, keys) if one.job and letter.job and one.job.id == letter.job.id]
    return found or [letter]


class Reply:
    """What comes goes to stdout: text as it is, embeddings as a line of base64 each."""

    def __init__(self) -> None:
        self.finished: Update | None = None
        self._last = ""

    def take(self, update: Update) -> None:
        self._write(update.text)
        for vector in update.embeddings or ():
            self._write(f"{vector}\n")
        if update.usage is not None:
            self.finished = update
            self.end_line()

    def end_line(self) -> None:
        if self._last not in ("", "\n"):
            with suppress(OSError, ValueError):  # nobody reads any more
                self._write("\n")

    def _write(self, text: str) -> None:
        self._last = text[-1:] or self._last
        sys.stdout.write(text)
        sys.stdout.flush()

    def summary(self) -> str:
        assert self.finished is not None
        assert self.finished.usage is not None
        usage = self.finished.usage
        tokens = f"{count(usage.completion_tokens, 'token')}, prompt of {usage.prompt_tokens}"
        return f"finished ({self.finished.finish_reason}; {tokens})"


def _say(line: str) -> None:
    print(f"tokenbus dead: {line}", file=sys.stderr, flush=True)
