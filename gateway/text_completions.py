"""What a text completion looks like, whole and in chunks."""

import codecs
from collections.abc import Iterator
from typing import Any

from gateway.generate import Answer
from gateway.inflight import Update
from gateway.replies import WholeReply
from gateway.templates import ChunkTemplate
from shared.messages import Logprob, Progress, TokenLogprob


class LegacyLogprobs:
    """Columns instead of rows, as in OpenAI's first API. One for each choice: offsets go on from chunk to chunk."""

    def __init__(self) -> None:
        self._offset = 0  # in characters of the choice's text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: list[TokenLogprob]) -> dict[str, Any]:
        return {
            "tokens": [_name(token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_top(token) for token in tokens],
            "text_offset": [self._next_offset(token) for token in tokens],
        }

    def _next_offset(self, token: TokenLogprob) -> int:
        before = self._offset
        self._offset += len(self._decoder.decode(token.token.encode() if token.bytes is None else bytes(token.bytes)))
        return before


def _name(token: Logprob | TokenLogprob) -> str:
    """A part of a character is named by its bytes, or many would have the same name."""
    if token.bytes and "\ufffd" in token.token:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.token


def _top(token: TokenLogprob) -> dict[str, float | None] | None:
    """The token itself is always among them."""
    if token.logprob is None:
        return None
    top: dict[str, float | None] = {}
    for other in token.top:
        top.setdefault(_name(other), other.logprob)
    return top | {_name(token): token.logprob}


class CompletionChunks(ChunkTemplate):
    OBJECT = "text_completion"
    BEFORE_TEXT = b'"text":'
    AFTER_TEXT = b""
    NO_TEXT = b'"text":""'

    def __init__(self, *, choices: int, **shared: Any) -> None:
        super().__init__(choices=choices, **shared)
        self._logprobs = [LegacyLogprobs() for _ in range(choices)]

    def _parts(self, update: Update) -> Iterator[dict[str, Any]]:
        tokens = update.prompt_logprobs + update.logprobs
        yield {"text": update.text, "logprobs": self._logprobs[update.index].of(tokens)}


class CompletionReply(WholeReply):
    """`returned` of the `candidates` for each prompt: the most probable ones."""

    def __init__(self, answer: Answer, *, candidates: int, returned: int, logprobs: bool) -> None:
        super().__init__(answer)
        self._candidates = candidates
        self._returned = returned
        self._with_logprobs = logprobs
        self._made = [Progress() for _ in range(answer.choices)]
        self._reasons: list[str | None] = [None] * answer.choices

    def collect(self, update: Update) -> None:
        self._made[update.index].add(update)
        self._reasons[update.index] = update.finish_reason or self._reasons[update.index]

    def result(self) -> dict[str, Any]:
        answer = self.answer
        return {
            "id": answer.id,
            "object": "text_completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [self._choice(index, job) for index, job in enumerate(self._chosen())],
            "usage": answer.usage(),
        }

    def _chosen(self) -> list[int]:
        """Jobs, in the order of their prompts."""
        jobs: list[int] = []
        for first in range(0, self.answer.choices, self._candidates):
            of_prompt = range(first, first + self._candidates)
            if self._returned < self._candidates:
                jobs += sorted(of_prompt, key=self._mean_logprob, reverse=True)[: self._returned]
            else:
                jobs += of_prompt
        return jobs

    def _mean_logprob(self, job: int) -> float:
        tokens = self._made[job].logprobs
        return sum(token.logprob or 0.0 for token in tokens) / max(1, len(tokens))

    def _choice(self, index: int, job: int) -> dict[str, Any]:
        made = self._made[job]
        tokens = made.prompt_logprobs + made.logprobs
        return {
            "index": index,
            "text": made.text,
            "logprobs": LegacyLogprobs().of(tokens) if self._with_logprobs else None,
            "finish_reason": self._reasons[job],
        }
