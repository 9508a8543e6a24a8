"""The durable requests that this gateway owns: their logs and its recordings of them are kept equal."""

from gateway.recording import Recording
from shared.connection import Bus
from shared.durable import DurableLogs, Log
from shared.keys import Keys
from shared.messages import End, Job


class OwnedLogs:
    def __init__(self, redis: Bus, keys: Keys, gateway: str) -> None:
        self._redis = redis
        self._logs = DurableLogs(redis, keys)
        self._gateway = gateway

    async def fence(self, job: Job, recording: Recording) -> Log | None:
        """From now on only this attempt of the job may write; what the log and the recording lack they get from each
        other. Returns the log as it was found; None if another gateway owns it."""
        return await self._meet(recording, job.attempt, job.deadline, None)

    async def close(self, recording: Recording, end: End) -> End:
        """Nobody may write any more: the request ended otherwise than by its worker. Unless that was quicker: returns
        the end that counts. Nothing happens if another gateway owns it."""
        log = await self._meet(recording, None, 0, end)
        return end if log is None or log.end is None else log.end

    async def _meet(self, recording: Recording, attempt: int | None, deadline: int, end: End | None) -> Log | None:
        owned = await self._logs.own(
            recording.id, self._gateway, instead_of=self._gateway, attempt=attempt, deadline=deadline
        )
        if owned is None:
            return None
        known = len(owned.log.made)
        for piece in owned.log.made[len(recording.pieces) :]:
            recording.add(0, piece)
        lacking = recording.pieces[known:]
        if owned.log.end is None and (lacking or end is not None):
            await self._redis.line.batch([self._logs.append(recording.id, owned.attempt, known, lacking, end)])
        return owned.log
