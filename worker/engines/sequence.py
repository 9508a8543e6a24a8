"""One sequence of a batch, from its prompt to its last token: what is computed of it, and how it is drawn."""

import torch
from tokenizers import Tokenizer

from shared.messages import TokenLogprob
from worker.engines.base import EngineRequest
from worker.engines.completion import Completion, Limits
from worker.engines.grammar import Matcher
from worker.engines.kv_cache import Row
from worker.engines.penalties import Penalties
from worker.engines.prompts import Prompt
from worker.engines.sampling import Bias, Draw


class Sequence(Completion):
    """A row of the batch."""

    def __init__(
        self, request: EngineRequest, prompt: Prompt, limits: Limits, tokenizer: Tokenizer, matcher: Matcher | None
    ) -> None:
        super().__init__(request, prompt, limits, tokenizer, matcher)
        self.row = Row(self.ids, request.adapter)
        self.is_over = False  # ended or aborted: what is still computed of it is for nobody
        self.flight: object = None  # the step that draws its next token, until that is known
        self.place = 0  # of it among those that are drawn there
        self.penalized: int | None = None  # its row among those that are
        self._bias: Bias | None = None

    @property
    def uncomputed(self) -> int:
        """Tokens that the model has not seen: the rest of a prompt, or the one token drawn last."""
        return len(self.ids) + self._drawn - self.row.length

    @property
    def _drawn(self) -> int:
        """Tokens that nobody has seen yet: 0 or 1."""
        return 0 if self.flight is None else 1

    @property
    def is_full(self) -> bool:
        """With the token that is drawn now."""
        return self.flight is not None and self.tokens_left <= 1

    @property
    def runs_ahead(self) -> bool:
        """Whether its next token can be drawn before the last one is known."""
        return self.matcher is None

    def begin(self) -> bool:
        """It has its place, and perhaps the first of its tokens. False: it has had one before, and what it is given
        when it comes back counts no more."""
        if self.cached is not None:
            return False
        self.cached = min(self.row.length, self.prompt_tokens)
        return True

    def next_tokens(self, budget: int) -> list[int]:
        """Below 0: as in PackedModel.forward."""
        if self.flight is not None and self.row.length == len(self.ids):
            return [-1 - self.place]
        return self.ids[self.row.length : self.row.length + budget]

    def next_prompt_ids(self, computed: int) -> list[int]:
        """The prompt's tokens that the logits of its `computed` last tokens are about: those after each of them."""
        end = self.row.length + 1
        return self.ids[end - computed : min(end, self.prompt_tokens)]

    def score_prompt(self, scored: list[TokenLogprob]) -> None:
        super().score_prompt(scored)
        if self.row.length == self.prompt_tokens:
            self.scored()

    def draw(self, penalties: Penalties, device: torch.device) -> Draw:
        """How to draw the next token. It stays among the penalized until it leaves."""
        if self.penalized is None and Penalties.asked_for(self.params):
            self.penalized = penalties.enter(self.ids[: self.prompt_tokens], self.ids[self.prompt_tokens :])
        if self._bias is None and self.params.logit_bias:
            self._bias = Bias(self.params.logit_bias, device)
        index = self.completion_tokens + self._drawn
        return Draw(self.params, self.request.choice, index, self.penalized, self._bias, self.banned(index))

    def leave(self, penalties: Penalties) -> None:
        """Its place in the batch. If it comes back, it is computed from its first token."""
        if self.scores_prompt:
            del self._prompt_logprobs[1:]  # the first token has none
        if self.penalized is not None:
            penalties.leave(self.penalized)
            self.penalized = None
