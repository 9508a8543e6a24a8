"""Dead letters: jobs that were given up after their workers died on them, as Redis keeps them."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from registry.directory import read_records
from shared.connection import Redis
from shared.errors import StartupError
from shared.keys import Keys
from shared.messages import Job, decode_job
from shared.queue import BURIED_PAYLOAD_TTL_MS

SHOWN_CHARS = 120
LARGEST_SHOWN_BYTES = 1 << 20  # of a prompt in a list; a larger one is fetched for the one letter that is shown


@dataclass(frozen=True, slots=True)
class Letter:
    """`job` as of its last attempt; None if the row is not readable."""

    model: str
    entry: str
    job: Job | None
    reason: str
    workers: tuple[str, ...]

    @property
    def buried_at(self) -> float:
        """In s since the epoch, by Redis's clock."""
        return int(self.entry.partition("-")[0]) / 1000

    @property
    def crashes(self) -> int:
        """How often a worker failed on it, the last time included."""
        return self.job.crashes + 1 if self.job else 0

    def is_meant_by(self, id: str) -> bool:
        return id == self.entry or (self.job is not None and id in (self.job.id, self.job.request))


async def read_letters(redis: Redis, keys: Keys) -> list[Letter]:
    """Of all models that the registry remembers, the oldest first."""
    records = await read_records(redis, keys)
    letters = []
    for model in sorted({record.model for record in records.values()}):
        rows = await redis.xrange(keys.dead(model))
        letters += [_letter(model, entry.decode(), fields) for entry, fields in rows]
    return sorted(letters, key=lambda letter: letter.buried_at)


def _letter(model: str, entry: str, fields: dict[bytes, bytes]) -> Letter:
    workers = fields.get(b"workers", b"").decode(errors="replace")
    return Letter(
        model=model,
        entry=entry,
        job=_job(fields.get(b"job", b"")),
        reason=fields.get(b"reason", b"").decode(errors="replace"),
        workers=tuple(worker for worker in workers.split(",") if worker),
    )


def _job(blob: bytes) -> Job | None:
    try:
        return decode_job(blob)
    except msgspec.MsgspecError:
        return None


def find(id: str, letters: Sequence[Letter]) -> Letter:
    """Raises StartupError unless exactly one is meant."""
    found = [letter for letter in letters if letter.is_meant_by(id)]
    if len(found) == 1:
        return found[0]
    if found:
        raise StartupError(f"'{id}' may be any of {_names(found)}; name one")
    raise StartupError(f"there is no dead letter '{id}'; the last ones are: {_names(letters[-3:]) or 'none'}")


def _names(letters: Sequence[Letter]) -> str:
    jobs = [letter.job.id for letter in letters if letter.job]
    return ", ".join(jobs if len(set(jobs)) == len(letters) else [letter.entry for letter in letters])


class Payloads:
    """What dead jobs asked: inline, or aside under their request for a day."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def of(self, job: Job) -> dict[str, Any] | None:
        """None if it is gone."""
        if isinstance(job.payload, dict):
            return job.payload
        blob = await self._redis.get(self._keys.payload(job.request))
        try:
            payload = msgspec.json.decode(blob)[job.payload] if blob else None
        except (msgspec.MsgspecError, IndexError, TypeError, KeyError):
            return None
        return payload if isinstance(payload, dict) else None

    async def beginning(self, job: Job) -> str:
        """One line of it, for a list."""
        if isinstance(job.payload, int):
            size = await self._redis.strlen(self._keys.payload(job.request))
            if size > LARGEST_SHOWN_BYTES:
                return f"({size / 2**20:.0f} MB)"
        payload = await self.of(job)
        return "(gone)" if payload is None else one_line(last_text(payload))

    async def keep(self, job: Job) -> None:
        """For another day."""
        if isinstance(job.payload, int):
            await self._redis.pexpire(self._keys.payload(job.request), BURIED_PAYLOAD_TTL_MS)


async def remove(redis: Redis, keys: Keys, letter: Letter) -> None:
    """And its prompt that lies aside, unless another letter of the same request still needs it."""
    await redis.xdel(keys.dead(letter.model), letter.entry)
    job = letter.job
    if job is None or isinstance(job.payload, dict):
        return
    left = [other.job for other in await read_letters(redis, keys) if other.job]
    if all(other.request != job.request for other in left):
        await redis.unlink(keys.payload(job.request))


def last_text(payload: dict[str, Any]) -> str:
    """What was asked last: what comes before it is often the same for all."""
    match payload:
        case {"messages": [*_, {"content": content}]}:
            return str(content)
        case {"prompt": prompt}:
            return str(prompt)
        case {"inputs": [first, *rest]}:
            return f"{first} (and {len(rest)} more)" if rest else str(first)
    return str(payload)


def one_line(text: str) -> str:
    """Its beginning, without what would move a terminal's cursor."""
    beginning = " ".join(printable(text[: SHOWN_CHARS * 4]).split())
    return beginning if len(beginning) <= SHOWN_CHARS else beginning[: SHOWN_CHARS - 1] + "…"


def printable(text: str) -> str:
    """A prompt is a stranger's: its control characters are shown as blanks."""
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def clock(at: float) -> str:
    """Local time; with the date where it is not today's."""
    moment = datetime.fromtimestamp(at)
    today = moment.date() == datetime.fromtimestamp(time.time()).date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def prompt_lines(payload: dict[str, Any]) -> Iterable[str]:
    """The whole prompt, for people."""
    match payload:
        case {"messages": list(messages)}:
            for message in messages:
                yield f"{message.get('role', '?')}: {printable(str(message.get('content', '')))}"
        case {"prompt": prompt}:
            yield printable(str(prompt))
        case {"inputs": list(inputs)}:
            yield from (printable(str(one)) for one in inputs)
        case _:
            yield printable(str(payload))
