"""One sequence, from its prompt to its last token: what is computed of it, what ends it, what is still unsent."""

from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from shared.messages import FinishReason, Progress, TokenLogprob, Usage
from worker.engines.base import EngineRequest, Output
from worker.engines.detokenizer import Detokenizer
from worker.engines.grammar import Matcher
from worker.engines.kv_cache import Row
from worker.engines.prompts import Prompt
from worker.engines.reply import Reply, Unsent
from worker.engines.sampling import Bias, Draw, Penalties
from worker.engines.text import StopMatcher
from worker.engines.transfer import sent

CONTEXT_TOKENS = 6  # of a prompt, to decode the first token of its continuation


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model says about where its sequences end, and which of its tokens are no text."""

    eos_ids: frozenset[int]
    max_model_len: int
    special_ids: frozenset[int] = field(default_factory=frozenset)


class Sequence:
    """A row of the batch. `push` takes each token of the completion, also those another worker made (resume)."""

    def __init__(
        self, request: EngineRequest, prompt: Prompt, limits: Limits, tokenizer: Tokenizer, matcher: Matcher | None
    ) -> None:
        self.id = request.id
        self.row = Row(list(prompt.ids))
        self.is_over = False  # ended or aborted: what is still computed of it is for nobody
        self.flight: object = None  # the step that draws its next token, until that is known
        self.place = 0  # of it among those that are drawn there
        self.matcher = matcher
        self.params = request.sampling
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._ids = self.row.ids
        self._cached: int | None = None  # tokens of the prompt that were not computed
        self._prompt_tokens = len(prompt.ids)
        room = limits.max_model_len - len(prompt.ids)
        self._max_tokens = room if self.params.max_tokens is None else min(room, self.params.max_tokens)
        # A grammar that is complete ends the reply, whatever else was asked for.
        self._eos_ids = frozenset() if self.params.ignore_eos and matcher is None else limits.eos_ids
        self._ends = self._eos_ids | frozenset(self.params.stop_token_ids)
        context = prompt.ids[-CONTEXT_TOKENS:] if request.kind == "completion" else []
        hidden = limits.special_ids - prompt.parser.keep if prompt.parser else limits.special_ids
        unsent = Unsent(request.resume)
        detokenizer = Detokenizer(tokenizer, context, hidden)
        self._reply = Reply(detokenizer, StopMatcher(self.params.stop), prompt.parser, unsent)
        self._penalties: Penalties | None = None
        self._bias: Bias | None = None
        self._prompt_logprobs: list[TokenLogprob] = []
        replayed = request.resume.token_ids if request.resume is not None else []
        if self.params.echo:
            unsent.add(Progress(text=self._prompt_text(tokenizer)))
        self.scores_prompt = self.params.echo and self.params.logprobs is not None and not replayed
        for token_id in replayed:
            if self.finish_reason is None:
                self.push(token_id)
        if self.finish_reason is None and self._completion_tokens >= self._max_tokens and not self.scores_prompt:
            self._finish("length")

    def _prompt_text(self, tokenizer: Tokenizer) -> str:
        prompt = self._request.payload["prompt"]
        return prompt if isinstance(prompt, str) else tokenizer.decode(self._ids, skip_special_tokens=False)

    @property
    def _completion_tokens(self) -> int:
        return len(self._ids) - self._prompt_tokens

    @property
    def uncomputed(self) -> int:
        """Tokens that the model has not seen: the rest of a prompt, or the one token drawn last."""
        return len(self._ids) + self._drawn - self.row.length

    @property
    def _drawn(self) -> int:
        """Tokens that nobody has seen yet: 0 or 1."""
        return 0 if self.flight is None else 1

    @property
    def is_full(self) -> bool:
        """With the token that is drawn now."""
        return self.flight is not None and self._completion_tokens + 1 >= self._max_tokens

    @property
    def runs_ahead(self) -> bool:
        """Whether its next token can be drawn before the last one is known."""
        return self.matcher is None

    def begin(self) -> None:
        """It has its place, and perhaps the first of its tokens. What it is given when it comes back counts no more."""
        if self._cached is None:
            self._cached = min(self.row.length, self._prompt_tokens)

    def next_tokens(self, budget: int) -> list[int]:
        """Below 0: as in PackedModel.forward."""
        if self.flight is not None and self.row.length == len(self._ids):
            return [-1 - self.place]
        return self._ids[self.row.length : self.row.length + budget]

    def next_prompt_ids(self, computed: int) -> list[int]:
        """The prompt's tokens that the logits of its `computed` last tokens are about: those after each of them."""
        end = self.row.length + 1
        return self._ids[end - computed : min(end, self._prompt_tokens)]

    def score_prompt(self, scored: list[TokenLogprob]) -> None:
        """Takes the next of the prompt's tokens. After the last of them the completion begins, or all is done."""
        self._prompt_logprobs += scored
        if self.row.length == self._prompt_tokens:
            self.scores_prompt = False
            if self._max_tokens == 0:
                self._finish("length")

    def ends_with(self, token_id: int) -> bool:
        """As the next token, it would end the completion without being a part of its text."""
        return token_id in self._ends

    def push(self, token_id: int) -> None:
        """The completion grows by a token, which may end it. Raises InvalidRequest where its grammar forbids it."""
        self._ids.append(token_id)
        ends = self.ends_with(token_id)
        if self.matcher is not None:
            self.matcher.push(None if ends else token_id)
        if ends:
            self._finish("stop")
            return
        self._reply.push(token_id)
        if self._reply.stop is not None or (self.matcher is not None and self.matcher.is_done):
            self._finish("stop")
        elif self._completion_tokens >= self._max_tokens:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._reply.finish()

    def output(self, token_ids: list[int], logprobs: list[TokenLogprob]) -> Output:
        """What has come to light since the last call, with the new `token_ids`."""
        made, scored = self._reply.take(), self._prompt_logprobs
        self._prompt_logprobs = []
        return Output(
            id=self.id,
            text=made.text,
            reasoning=made.reasoning,
            tool_calls=made.tool_calls,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=scored,
            finish_reason=self.finish_reason,
            stop=self._reply.stop,
            usage=self._usage() if self.finish_reason is not None else None,
        )

    def _usage(self) -> Usage:
        return Usage(
            self._prompt_tokens,
            self._completion_tokens,
            self._cached or 0,
            reasoning_tokens=self._reply.reasoning_tokens,
        )

    def draw(self, vocabulary: int, device: torch.device) -> Draw:
        """How to draw the next token."""
        if self._penalties is None and Penalties.asked_for(self.params):
            self._penalties = Penalties(self.params, vocabulary, device)
            self._penalties.see(sent(self._ids[: self._prompt_tokens], torch.int64, device), completion=False)
            self._penalties.see(sent(self._ids[self._prompt_tokens :], torch.int64, device), completion=True)
        if self._bias is None and self.params.logit_bias:
            self._bias = Bias(self.params.logit_bias, device)
        index = self._completion_tokens + self._drawn
        banned = self._ban(index, device)
        return Draw(self.params, self._request.choice, index, self._penalties, self._bias, banned)

    def drawn(self, tokens: Tensor, place: int) -> None:
        """Its next token is tokens[place], int64, which nobody knows yet; below 0 where there is none."""
        if self._penalties is not None:
            self._penalties.see(tokens[place : place + 1].clamp_min(0), completion=True)

    def _ban(self, index: int, device: torch.device) -> Tensor | None:
        """What ends a completion, while it may not end. With ignore_eos and a grammar it never may, but where nothing
        else can follow."""
        if index < self.params.min_tokens:
            ids = self._ends
        elif self.params.ignore_eos and self.matcher is not None:
            ids = self._eos_ids
        else:
            return None
        return sent(sorted(ids), torch.int64, device) if ids else None
