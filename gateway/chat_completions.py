"""What a chat completion looks like, whole and in chunks."""

from collections.abc import Iterator
from typing import Any

from gateway.calls import call_id
from gateway.generate import Answer
from gateway.inflight import Update
from gateway.replies import WholeReply
from gateway.templates import ChunkTemplate
from shared.messages import Logprob, Progress, TokenLogprob, ToolCallDelta


def logprobs_of(tokens: list[TokenLogprob]) -> dict[str, Any]:
    content = [_entry(token) | {"top_logprobs": [_entry(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _entry(token: Logprob | TokenLogprob) -> dict[str, Any]:
    bytes = list(token.token.encode()) if token.bytes is None else token.bytes
    return {"token": token.token, "logprob": token.logprob, "bytes": bytes}


class ChatChunks(ChunkTemplate):
    OBJECT = "chat.completion.chunk"
    BEFORE_TEXT = b'"delta":{"content":'
    AFTER_TEXT = b"}"
    NO_TEXT = b'"delta":{}'

    def __init__(self, *, choices: int, **shared: Any) -> None:
        super().__init__(choices=choices, **shared)
        self._has_called = [False] * choices

    def opening(self) -> bytes:
        first = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return b"".join(head + first + self._end for head in self._heads)

    def _parts(self, update: Update) -> Iterator[dict[str, Any]]:
        logprobs = logprobs_of(update.logprobs) if update.logprobs else None
        for delta in self._deltas(update, logprobs is not None):
            yield {"delta": delta, "logprobs": logprobs}
            logprobs = None

    def _deltas(self, update: Update, has_logprobs: bool) -> Iterator[dict[str, Any]]:
        if update.reasoning:
            yield {"reasoning_content": update.reasoning}
        if update.text or (has_logprobs and not update.reasoning and not update.tool_calls):
            yield {"content": update.text}
        if update.tool_calls:
            self._has_called[update.index] = True
            yield {"tool_calls": [self._piece(update.index, piece) for piece in update.tool_calls]}

    def _piece(self, choice: int, piece: ToolCallDelta) -> dict[str, Any]:
        """Id, type and name come once: clients join what comes again."""
        if not piece.name:
            return {"index": piece.index, "function": {"arguments": piece.arguments}}
        return {
            "index": piece.index,
            "id": call_id(self._id, choice, piece.index),
            "type": "function",
            "function": {"name": piece.name, "arguments": piece.arguments},
        }

    def _reason(self, update: Update) -> str:
        return finish_reason(update.finish_reason or "", self._has_called[update.index])


def finish_reason(reason: str, has_called: bool) -> str:
    return "tool_calls" if has_called and reason == "stop" else reason


class ChatReply(WholeReply):
    def __init__(self, answer: Answer, *, logprobs: bool = False) -> None:
        super().__init__(answer)
        self._with_logprobs = logprobs
        self._made = [Progress() for _ in range(answer.choices)]
        self._reasons = [""] * answer.choices

    def collect(self, update: Update) -> None:
        self._made[update.index].add(update)
        self._reasons[update.index] = update.finish_reason or self._reasons[update.index]

    def result(self) -> dict[str, Any]:
        answer = self.answer
        return {
            "id": answer.id,
            "object": "chat.completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [self._choice(index, made) for index, made in enumerate(self._made)],
            "usage": answer.usage(),
        }

    def _choice(self, index: int, made: Progress) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if made.tool_calls and not made.text else made.text,
            "refusal": None,
        }
        if made.reasoning:
            message["reasoning_content"] = made.reasoning
        if made.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call_id(self.answer.id, index, call.index),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in made.tool_calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs_of(made.logprobs) if self._with_logprobs else None,
            "finish_reason": finish_reason(self._reasons[index], bool(made.tool_calls)),
        }
