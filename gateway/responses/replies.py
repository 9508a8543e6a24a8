"""What a client of the Responses API gets: a response, whole or as events."""

from collections.abc import Callable
from typing import Any

import orjson

from gateway.generate import Answer
from gateway.hub import Hub
from gateway.inflight import Update
from gateway.recording import Recording
from gateway.replies import WholeReply
from gateway.responses.errors import param_of
from gateway.responses.output import OutputItems, ended, outcome
from gateway.templates import EventTemplate, typed_event
from shared.errors import ShuttingDown, StreamLost, TokenbusError
from shared.messages import End

EVENT_OF = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.incomplete",  # OpenAI has no event for it
}
TEXT_DELTA = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","output_index":%d,"item_id":"%b",'
    b'"content_index":0,"logprobs":[],"delta":'
)


def end_of(update: Update) -> End:
    return End(reason=update.finish_reason, usage=update.usage, stop=update.stop)


class RecordedAnswer(Answer):
    """Of a stored response. When it is closed before its end, `on_close` decides what becomes of it."""

    def __init__(self, hub: Hub, recording: Recording, on_close: Callable[[Recording], None]) -> None:
        super().__init__(hub, recording.id, recording.response["model"], (), 1)
        self.created = recording.response["created_at"]
        self.choices = 1
        self.mailbox = recording
        self.recording = recording
        self._on_close = on_close

    def close(self) -> None:
        if not self.has_ended:
            self._on_close(self.recording)


class ResponseReply(WholeReply):
    def __init__(self, answer: Answer, response: dict[str, Any]) -> None:
        super().__init__(answer)
        self._response = response
        self._pieces: list[Update] = []
        self._end = End()

    def collect(self, update: Update) -> None:
        self._pieces.append(update)
        if update.usage is not None:
            self._end = end_of(update)

    def result(self) -> dict[str, Any]:
        return ended(self._response, self._pieces, self._end)


class ResponseEvents(EventTemplate):
    """Numbered from 0. Each piece of a stored response makes the same events wherever and whenever it is told, so a
    client may ask for those after any number."""

    def __init__(self, response: dict[str, Any], *, starting_after: int = -1, **_: Any) -> None:
        self._response = response
        self._items = OutputItems(response["id"])
        self._starting_after = starting_after
        self._next = 0
        self._has_begun = False
        self._end = End()
        self._place: tuple[int, str] | None = None
        self._before_text = b""

    def opening(self) -> bytes:
        created = self._told("response.created", self._response)
        if self._response["status"] == "queued":
            return created + self._told("response.queued", self._response)
        return created + self._begin()

    def _begin(self) -> bytes:
        self._has_begun = True
        self._response = self._response | {"status": "in_progress"}
        return self._told("response.in_progress", self._response)

    def update(self, update: Update) -> bytes:
        if update.usage is not None:
            self._end = end_of(update)
        if self._items.take_text(update):
            return self._more_text(update.text) if update.text else b""
        begins = b"" if self._has_begun else self._begin()
        return begins + b"".join(map(self._event, self._items.take(update)))

    def _more_text(self, text: str) -> bytes:
        """The event of most tokens: what is the same in all of one item is encoded once."""
        if self._place != self._items.place:
            self._place = self._items.place
            self._before_text = TEXT_DELTA % (self._place[0], self._place[1].encode())
        number, self._next = self._next, self._next + 1
        if number <= self._starting_after:
            return b""
        return b"".join((self._before_text, orjson.dumps(text), b',"sequence_number":%d}\n\n' % number))

    def ending(self, usage: dict[str, Any]) -> bytes:
        return self._ending(self._end)

    def error(self, error: TokenbusError) -> bytes:
        if isinstance(error, ShuttingDown | StreamLost):  # not the response's end, so it has no number of its own
            told = {"type": "error", "code": error.code, "message": error.message, "param": param_of(error.param)}
            return typed_event(told | {"sequence_number": self._next - 1})
        return self._ending(End(code=error.code, message=error.message, param=error.param))

    def _ending(self, end: End) -> bytes:
        fields = outcome(end)
        begins = b"" if self._has_begun else self._begin()
        last = begins + b"".join(map(self._event, self._items.end(fields["status"])))
        response = self._response | fields | {"output": self._items.so_far()}
        return last + self._told(EVENT_OF[fields["status"]], response)

    def _told(self, type: str, response: dict[str, Any]) -> bytes:
        return self._event({"type": type, "response": response})

    def _event(self, event: dict[str, Any]) -> bytes:
        number, self._next = self._next, self._next + 1
        return b"" if number <= self._starting_after else typed_event(event | {"sequence_number": number})
