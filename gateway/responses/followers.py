"""Responses that run at another gateway, read from their logs for clients of this one."""

import asyncio
from dataclasses import dataclass, field, replace

from gateway.recording import Recording
from gateway.responses.output import ended, pieces_of, so_far
from gateway.responses.records import Record, Records
from shared.connection import BUS_ERRORS, Bus
from shared.durable import DurableLogs, Log
from shared.errors import InvalidRequest, NotFound, StreamLost, TokenbusError
from shared.keys import Keys
from shared.logging import get_logger

log = get_logger(__name__)


@dataclass(slots=True)
class _Followed:
    recording: Recording
    log: Log = field(default_factory=Log)
    looks: int = 0  # without news
    is_missing: bool = False  # at the last look there was no record of it

    def take(self) -> None:
        """What was read goes to the recording, as far as it does not have it."""
        self.looks = 0 if self.log.made else self.looks + 1
        for place, piece in enumerate(self.log.made, self.log.pieces - len(self.log.made)):
            if place == len(self.recording.pieces):
                self.recording.add(0, piece)
        self.log.made = []
        if self.log.end is not None:
            self.recording.ended(self.log.end)


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
        recording = Recording(record.response, record.items, Recording.release, Recording.release)
        followed = _Followed(recording)
        await self._logs.read((recording.id, followed.log))
        followed.take()
        if recording.end is None:
            if record.end is None:
                self._add(followed)
            elif in_part:
                why = "The stream of this response is not kept any more; retrieve it without 'starting_after'."
                raise InvalidRequest(why, param="starting_after")
            else:
                for piece in pieces_of(record.response["output"]):
                    recording.add(0, piece)
                recording.ended(record.end)
        return recording

    async def up_to_date(self, record: Record) -> Record:
        """With what is in its log, as long as its end is not in the record."""
        if record.end is not None:
            return record
        recording = await self.open(record, in_part=False)
        self.forget(recording)
        if recording.end is None:
            return replace(record, response=so_far(record.response, recording.pieces))
        return replace(record, response=ended(record.response, recording.pieces, recording.end), end=recording.end)

    def follow(self, recording: Recording) -> None:
        """From where it is, to its end."""
        self._add(_Followed(recording))

    def _add(self, followed: _Followed) -> None:
        self._followed[id(followed.recording)] = followed
        self._wake.set()

    def forget(self, recording: Recording) -> None:
        self._followed.pop(id(recording), None)

    def fail_all(self, error: TokenbusError) -> None:
        """This gateway leaves; their clients can ask another one."""
        for followed in self._followed.values():
            followed.recording.fail(error)

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
            if one.recording.end is None and one.looks % self.SILENT_LOOKS == self.SILENT_LOOKS - 1:
                await self._ask_record(one)
            if one.recording.end is not None:
                self.forget(one.recording)

    async def _ask_record(self, one: _Followed) -> None:
        is_there, has_ended = await self._records.state(one.recording.id)
        if not is_there and one.is_missing:  # a Redis that came back empty gets it again from its owner
            one.recording.fail(NotFound("The response was deleted."))
        one.is_missing = not is_there
        if has_ended:
            why = "The rest of this stream is lost; retrieve the response without 'stream'."
            one.recording.fail(StreamLost(why))
