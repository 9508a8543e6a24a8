"""Responses that run at another gateway, read from their logs for clients of this one."""

import asyncio
from dataclasses import dataclass, field

from gateway.recording import Recording
from gateway.responses.output import pieces_of
from gateway.responses.records import Record, Records
from shared.connection import BUS_ERRORS, Bus
from shared.durable import DurableLogs, Log
from shared.errors import InvalidRequest, NotFound, TokenbusError
from shared.keys import Keys
from shared.logging import get_logger

log = get_logger(__name__)


@dataclass(slots=True)
class _Followed:
    recording: Recording
    log: Log = field(default_factory=Log)
    seen: int = 0  # pieces of the log
    looks: int = 0  # without news

    def take(self) -> None:
        """What was read goes to the recording, as far as it does not have it."""
        self.looks = 0 if self.log.made else self.looks + 1
        for place, piece in enumerate(self.log.made, self.seen):
            if place == len(self.recording.pieces):
                self.recording.add(0, piece)
        self.seen += len(self.log.made)
        self.log.made = []
        if self.log.end is not None:
            self.recording.ended(self.log.end)


def _wait(_: Recording) -> None:
    """What its owner does at its end is seen in the record."""


class Followers:
    """All logs are looked at together."""

    EVERY_S = 0.1
    SILENT_LOOKS = 20  # after which the record is asked whether anything may still come

    def __init__(self, redis: Bus, keys: Keys, records: Records) -> None:
        self._logs = DurableLogs(redis, keys)
        self._records = records
        self._followed: dict[int, _Followed] = {}  # by the identity of the recording
        self._wake = asyncio.Event()

    async def open(self, record: Record, *, in_part: bool) -> Recording:
        """A recording of it that goes on to its end. `in_part`: not its beginning, so the numbers of its events must be
        what they were. Raises InvalidRequest if that cannot be."""
        recording = Recording(record.response, record.items, _wait, _wait)
        followed = _Followed(recording)
        await self._logs.read((recording.id, followed.log))
        followed.take()
        if record.end is None:
            self.follow(recording)
            return recording
        if recording.end is None:
            if in_part:
                why = "The stream of this response is not kept any more; retrieve it without 'starting_after'."
                raise InvalidRequest(why, param="starting_after")
            for piece in pieces_of(record.response["output"]):
                recording.add(0, piece)
            recording.ended(record.end)
        recording.release()
        return recording

    def follow(self, recording: Recording) -> None:
        """From where it is, to its end."""
        self._followed[id(recording)] = _Followed(recording)
        self._wake.set()

    def forget(self, recording: Recording) -> None:
        self._followed.pop(id(recording), None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            try:
                await self._look()
            except BUS_ERRORS as error:
                log.debug("no look at the logs: %s", error)
            if not self._followed:
                self._wake.clear()
            await asyncio.sleep(self.EVERY_S)

    async def _look(self) -> None:
        followed = list(self._followed.values())
        await self._logs.read(*((one.recording.id, one.log) for one in followed))
        for one in followed:
            one.take()
            if one.recording.end is not None or one.looks % self.SILENT_LOOKS == self.SILENT_LOOKS - 1:
                await self._ask_record(one)

    async def _ask_record(self, one: _Followed) -> None:
        """Its end is told once it is stored, so that it can be asked for."""
        record = await self._records.load(one.recording.id)
        if record is None:
            one.recording.fail(NotFound("The response was deleted."))
        elif record.end is not None:
            why = "The rest of this stream is lost; retrieve the response without 'stream'."
            one.recording.fail(TokenbusError(why))  # unless it has ended
        elif one.recording.end is None or one.looks < self.SILENT_LOOKS:
            return
        one.recording.release()
        self.forget(one.recording)
