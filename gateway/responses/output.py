"""What is made of a request, as a response's output items, and as the events that tell of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gateway.calls import call_id
from gateway.chat_completions import logprobs_of
from gateway.inflight import Update
from gateway.responses.errors import param_of
from shared.errors import Cancelled, InvalidRequest, TokenbusError
from shared.messages import End, Progress, TokenLogprob, ToolCallDelta, Usage

Event = dict[str, Any]
MESSAGE = ("message", 0)


class OutputItems:
    """Turns updates into OpenAI's events of output items, in their order. One item is open at a time."""

    def __init__(self, response: str) -> None:
        self._response = response
        self._items: list[dict[str, Any]] = []  # the last may be open
        self._open: tuple[str, int] | None = None  # its type, and the number of its tool call
        self._text: list[str] = []  # of the open one
        self._logprobs: list[TokenLogprob] = []  # of its text
        self._untold: list[TokenLogprob] = []  # of text that is held back

    def take_text(self, update: Update) -> bool:
        """Takes an update that is nothing but more text for the open message, as there is one for each token. False if
        it is something else."""
        is_more = self._open == MESSAGE and not (update.reasoning or update.tool_calls or update.logprobs)
        if is_more and not self._untold:
            self._text.append(update.text)
        return is_more and not self._untold

    @property
    def place(self) -> tuple[int, str]:
        """The index and the id of the last item."""
        return len(self._items) - 1, self._items[-1]["id"]

    def take_all(self, updates: Iterable[Update]) -> None:
        """Nobody wants the events."""
        for update in updates:
            if not self.take_text(update):
                for _ in self.take(update):
                    pass

    def take(self, update: Update) -> Iterator[Event]:
        if update.reasoning:
            yield from self._enter("reasoning")
            yield self._delta("reasoning_text", update.reasoning)
        self._untold += update.logprobs
        if update.text:
            yield from self._enter("message")
            yield self._delta("output_text", update.text) | {"logprobs": self._told()}
        elif update.reasoning or update.tool_calls:
            self._untold = []  # they were of thoughts and calls, which have no place for them
        for piece in update.tool_calls:
            yield from self._enter("function_call", piece)
            if piece.arguments:
                yield self._delta("function_call_arguments", piece.arguments)

    def end(self, status: str) -> Iterator[Event]:
        """No more comes; `status` is the response's. One that says nothing says so in a message, unless it failed."""
        if not self._items and status in ("completed", "incomplete"):
            yield from self._enter("message")
        yield from self._leave("completed" if status == "completed" else "incomplete")

    def so_far(self) -> list[dict[str, Any]]:
        """All items, the open one as it is now."""
        return self._items if self._open is None else [*self._items[:-1], self._whole("in_progress")]

    def _enter(self, kind: str, piece: ToolCallDelta | None = None) -> Iterator[Event]:
        call = piece.index if piece is not None else 0
        if self._open == (kind, call):
            return
        yield from self._leave("completed")
        self._open = (kind, call)
        if kind == "message":
            item: dict[str, Any] = {"id": self._id("msg"), "type": kind, "role": "assistant", "content": []}
        elif kind == "reasoning":
            item = {"id": self._id("rs"), "type": kind, "summary": [], "content": []}
        else:
            name = piece.name if piece is not None else ""
            item = {"id": self._id("fc"), "type": kind, "call_id": self._call(call), "name": name, "arguments": ""}
        self._items.append(item)
        yield self._event("response.output_item.added", item=item | {"status": "in_progress"})
        if kind != "function_call":
            yield self._event("response.content_part.added", content_index=0, part=self._part())

    def _leave(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        text, part = "".join(self._text), self._part()
        match self._open[0]:
            case "message":
                logprobs = {"logprobs": part["logprobs"]}
                yield self._event("response.output_text.done", content_index=0, text=text) | logprobs
                yield self._event("response.content_part.done", content_index=0, part=part)
            case "reasoning":
                yield self._event("response.reasoning_text.done", content_index=0, text=text)
                yield self._event("response.content_part.done", content_index=0, part=part)
            case _:
                name = self._items[-1]["name"]
                yield self._event("response.function_call_arguments.done", arguments=text, name=name)
        self._items[-1] = self._whole(status)
        yield self._event("response.output_item.done", item=self._items[-1])
        self._open, self._text, self._logprobs = None, [], []

    def _whole(self, status: str) -> dict[str, Any]:
        """The open item."""
        item = self._items[-1] | {"status": status}
        if item["type"] == "function_call":
            return item | {"arguments": "".join(self._text)}
        return item | {"content": [self._part()]}

    def _part(self) -> dict[str, Any]:
        text = "".join(self._text)
        if self._open is not None and self._open[0] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": _entries(self._logprobs)}

    def _delta(self, kind: str, text: str) -> Event:
        self._text.append(text)
        event = self._event(f"response.{kind}.delta", delta=text)
        return event if kind == "function_call_arguments" else event | {"content_index": 0}

    def _told(self) -> list[dict[str, Any]]:
        told, self._untold = self._untold, []
        self._logprobs += told
        return _entries(told)

    def _event(self, type: str, **fields: Any) -> Event:
        index, id = self.place
        place: Event = {"type": type, "output_index": index}
        return place | fields if "item" in fields else place | {"item_id": id} | fields

    def _id(self, prefix: str) -> str:
        """Tells where the item is."""
        return f"{prefix}_{self._response.removeprefix('resp_')}_{len(self._items)}"

    def _call(self, index: int) -> str:
        return call_id(self._response, 0, index)


def _entries(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = logprobs_of(list(tokens))["content"] if tokens else []
    return entries


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def outcome(end: End) -> dict[str, Any]:
    """The fields of a response that say how it ended."""
    if end.reason is not None and end.usage is not None:
        cut = end.reason == "length"
        return {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": usage_of(end.usage),
        }
    if end.code == Cancelled.code:
        return {"status": "cancelled"}
    error = TokenbusError.from_code(end.code or "", end.message, end.param)
    code = "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"
    return {"status": "failed", "error": {"code": code, "message": end.message, "param": param_of(end.param)}}


def ended(response: dict[str, Any], pieces: Iterable[Update], end: End) -> dict[str, Any]:
    """The response as it is for good."""
    items, fields = OutputItems(response["id"]), outcome(end)
    items.take_all(pieces)
    for _ in items.end(fields["status"]):
        pass
    return response | fields | {"output": items.so_far()}


def beginning(response: dict[str, Any]) -> dict[str, Any]:
    """As it was before anything was made of it."""
    status = "queued" if response["background"] else "in_progress"
    unknown = dict.fromkeys(("error", "incomplete_details", "usage"))
    return response | unknown | {"status": status, "output": []}


def so_far(response: dict[str, Any], pieces: Iterable[Update]) -> dict[str, Any]:
    """As it is while it runs; it is queued until something is made of it."""
    items, pieces = OutputItems(response["id"]), list(pieces)
    items.take_all(pieces)
    return beginning(response) | ({"status": "in_progress", "output": items.so_far()} if pieces else {})


def pieces_of(output: Iterable[dict[str, Any]]) -> list[Progress]:
    """What would make these items: of a response whose log is gone."""
    pieces, calls = [], 0
    for item in output:
        text = "".join(part["text"] for part in item.get("content", ()))
        if item["type"] == "function_call":
            pieces.append(Progress(tool_calls=[ToolCallDelta(calls, item["name"], item["arguments"])]))
            calls += 1
        else:
            pieces.append(Progress(reasoning=text) if item["type"] == "reasoning" else Progress(text=text))
    return pieces
