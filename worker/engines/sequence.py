"""One sequence, from its prompt to its last token: what is computed of it, what ends it, what is still unsent."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from shared.messages import FinishReason, Usage
from worker.engines.base import EngineRequest, Output
from worker.engines.detokenizer import Detokenizer
from worker.engines.packed_attention import RowCache
from worker.engines.sampling import Draw, Penalties
from worker.engines.text import StopMatcher

CONTEXT_TOKENS = 6  # of a prompt, to decode the first token of its continuation


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model says about where its sequences end."""

    eos_ids: frozenset[int]
    max_model_len: int


class Sequence:
    """A row of the batch. `push` takes each token of the completion, also those another worker made (resume)."""

    def __init__(self, request: EngineRequest, prompt_ids: list[int], limits: Limits, tokenizer: Tokenizer) -> None:
        self.id = request.id
        self.cache = RowCache()
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._params = request.sampling
        self._eos_ids = limits.eos_ids
        self._ids = list(prompt_ids)
        self._prompt_tokens = len(prompt_ids)
        room = limits.max_model_len - len(prompt_ids)
        self._max_tokens = room if self._params.max_tokens is None else min(room, self._params.max_tokens)
        context = prompt_ids[-CONTEXT_TOKENS:] if request.kind == "completion" else []
        self._detokenizer = Detokenizer(tokenizer, context)
        self._stops = StopMatcher(self._params.stop)
        self._penalties: Penalties | None = None
        self._text = ""  # made, and not yet taken
        self._sent_before = 0  # characters of the text that the client already has
        if request.resume is not None:
            self._replay(request.resume.token_ids, request.resume.chars_sent)
        if self.finish_reason is None and self._completion_tokens >= self._max_tokens:
            self._finish("length")

    def _replay(self, token_ids: list[int], chars_sent: int) -> None:
        self._sent_before = chars_sent
        for token_id in token_ids:
            if self.finish_reason is None:
                self.push(token_id)

    @property
    def _completion_tokens(self) -> int:
        return len(self._ids) - self._prompt_tokens

    @property
    def uncomputed(self) -> int:
        """Tokens that the model has not seen: the rest of a prompt, or the one token drawn last."""
        return len(self._ids) - self.cache.length

    def next_tokens(self, budget: int) -> list[int]:
        return self._ids[self.cache.length : self.cache.length + budget]

    def push(self, token_id: int) -> None:
        """The completion grows by a token, which may end it."""
        self._ids.append(token_id)
        if self._penalties is not None:
            self._penalties.see([token_id], completion=True)
        if token_id in self._eos_ids:
            self._finish("stop")
            return
        self._release(self._stops.push(self._detokenizer.push(token_id)))
        if self._stops.matched:
            self._finish("stop")
        elif self._completion_tokens >= self._max_tokens:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._release(self._stops.flush())

    def _release(self, text: str) -> None:
        known = min(self._sent_before, len(text))
        self._sent_before -= known
        self._text += text[known:]

    def output(self, token_ids: list[int]) -> Output:
        """What has come to light since the last call, with the new `token_ids`."""
        text, self._text = self._text, ""
        usage = None if self.finish_reason is None else Usage(self._prompt_tokens, self._completion_tokens)
        return Output(id=self.id, text=text, token_ids=token_ids, finish_reason=self.finish_reason, usage=usage)

    def draw(self, vocabulary: int, device: torch.device) -> Draw:
        """How to draw the next token."""
        if self._penalties is None and Penalties.asked_for(self._params):
            self._penalties = Penalties(self._params, vocabulary, device)
            self._penalties.see(self._ids[: self._prompt_tokens], completion=False)
            self._penalties.see(self._ids[self._prompt_tokens :], completion=True)
        return Draw(self._params, self._request.choice, self._completion_tokens, self._penalties)
