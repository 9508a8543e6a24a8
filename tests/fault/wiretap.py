"""Listens to what workers say to gateways: who claimed what, who spoke for an old attempt, who ran alone."""

import threading

import msgspec
import redis

from shared.messages import Claimed, Event, Failed, Finished, Released, decode_frame


class Wiretap:
    """Every event of every gateway, in the order in which Redis passed them; until closed, or its Redis dies."""

    def __init__(self, redis_url: str) -> None:
        self.events: list[Event] = []
        self._client = redis.Redis.from_url(redis_url)
        self._pubsub = self._client.pubsub()
        self._pubsub.psubscribe("tokenbus:events:*")
        self._pubsub.get_message(timeout=5)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="wiretap", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                message = self._pubsub.get_message(timeout=0.1)
            except (redis.RedisError, OSError):
                return
            if message is not None and message["type"] == "pmessage":
                try:
                    self.events += decode_frame(message["data"]).events
                except msgspec.MsgspecError:
                    continue

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._pubsub.close()
        self._client.close()

    def of(self, worker: str) -> list[Event]:
        return [event for event in self.events if event.worker == worker]

    def company_of(self, claim: Claimed) -> set[str]:
        """Jobs that the claimer had, claimed and not ended, when it announced this one."""
        held: set[str] = set()
        for event in self.of(claim.worker):
            if event is claim:
                return held
            if isinstance(event, Claimed):
                held.add(event.job)
            elif isinstance(event, Finished | Failed | Released):
                held.discard(event.job)
        raise AssertionError("no such claim")
