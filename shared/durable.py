"""What lets a request outlive the gateway that accepted it. PROTOCOL: "Durable jobs".

Its owner key says which gateway answers for it and which attempt alone may write; its log is what was made of it, in
pieces: one for each step of its worker, so that whoever reads it makes the same events of it, with the same numbers.
The worker writes the log; the owner adds what a dead one did not get to write. The id of an entry is PIECES-0, how
many there are up to its end, or PIECES-1 if it holds the end: a log that Redis lost, wholly or in part, is written
again under the same ids, and who reads on from the last one that it knows gets what it lacks, whatever the clocks
say.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shared.connection import Bus
from shared.errors import Unreadable
from shared.keys import Keys
from shared.line import Command
from shared.messages import End, Job, Progress, decode_end, decode_pieces, encode
from shared.queue import script

LOG_TTL_MS = 600_000  # from the last entry on; beyond it a stream cannot be gone on with
LOG_EVERY_S = 0.25  # that a piece is held back, for others to be written with it
LOG_EVERY_PIECES = 16
READ_ENTRIES = 64  # at a time: others have their turn between them


@dataclass(slots=True)
class Log:
    """What was read of one, up to the entry `last`; `made` of it is the last part, if a reader took the others away."""

    made: list[Progress] = field(default_factory=list)
    end: End | None = None
    last: str = ""
    pieces: int = 0  # in all

    def read(self, rows: Iterable[Any]) -> None:
        """More entries, as Redis gives them: [id, [field, value, ...]]. What cannot be read is the end: a failure."""
        for entry, fields in rows:
            try:
                self._read(int(entry.partition(b"-")[0]), dict(zip(fields[::2], fields[1::2], strict=False)))
            except (msgspec.MsgspecError, KeyError, ValueError):
                self.end = End(code=Unreadable.code, message="What was stored of this response cannot be read.")
            self.last = entry.decode()

    def _read(self, after: int, values: dict[bytes, bytes]) -> None:
        """An entry may repeat pieces: after Redis has lost some, its owner writes them again."""
        made = decode_pieces(values[b"made"])
        known = self.pieces - (after - len(made))
        if known < 0:
            raise ValueError("pieces are missing")
        end = decode_end(values[b"end"]) if b"end" in values else None
        self.made += made[known:]
        self.pieces = max(self.pieces, after)
        self.end = self.end or end


@dataclass(frozen=True, slots=True)
class Owned:
    """`attempt` alone may write from now on; `before`: the owner up to now."""

    attempt: int
    before: str
    log: Log


class DurableLogs:
    def __init__(self, redis: Bus, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._own, self._append = script("own"), script("append")

    def began(self, job: Job) -> list[Command]:
        """Makes the job's gateway the owner of its request, if nobody is: Redis may have lost that it was."""
        owner, owned = self._keys.owner(job.request), self._keys.owned(job.gateway)
        return [
            ("SET", owner, f"{job.attempt} {job.gateway}", "NX", "PXAT", job.deadline + LOG_TTL_MS),
            ("SADD", owned, job.request),
            ("SADD", self._keys.owners(), job.gateway),
        ]

    def append(
        self, request: str, attempt: int, before: int, made: Sequence[Progress], end: End | None = None
    ) -> Command:
        """Answers 1, or 0 if this attempt may not write any more, or the log lacks some of the `before` pieces."""
        keys = (self._keys.owner(request), self._keys.log(request))
        pieces = (before, before + len(made), encode(made), b"" if end is None else encode(end))
        return ("EVAL", self._append.source, len(keys), *keys, attempt, *pieces, LOG_TTL_MS)

    async def owner(self, request: str) -> str:
        """The gateway that answers for it, or ''."""
        value = await self._redis.line.ask("GET", self._keys.owner(request))
        return "" if value is None else value.decode().partition(" ")[2]

    async def own(
        self, request: str, gateway: str, *, instead_of: str = "", attempt: int | None = None, deadline: int = 0
    ) -> Owned | None:
        """The gateway answers for it from now on, and the attempt (the next one, if none is given) alone may write.
        None if it belongs to another than `instead_of`, if that is given. An owner whom Redis has forgotten may say so
        anew, with the job's deadline."""
        keys = [self._keys.owner(request), self._keys.log(request)]
        next_attempt = "" if attempt is None else attempt
        left = max(0, deadline - int(time.time() * 1000)) + LOG_TTL_MS
        reply = await self._redis.line.run(self._own, keys, [gateway, next_attempt, instead_of, left])
        if not reply:
            return None
        log = Log()
        log.read(reply[2])
        return Owned(reply[0], reply[1].decode(), log)

    async def read(self, *logs: tuple[str, Log]) -> None:
        """What was added to each request's log since it was read last."""
        while logs:
            pages = await self._redis.line.batch([self._page(*one) for one in logs])
            for (_, log), rows in zip(logs, pages, strict=True):
                log.read(rows)
            logs = tuple(one for one, rows in zip(logs, pages, strict=True) if len(rows) == READ_ENTRIES)

    def _page(self, request: str, log: Log) -> Command:
        return ("XRANGE", self._keys.log(request), f"({log.last}" if log.last else "-", "+", "COUNT", READ_ENTRIES)
