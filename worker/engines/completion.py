"""What a sequence says: its tokens so far, the text that they make, what ends it, what is still unsent.

It knows nothing of how tokens are computed, and so serves every engine that makes tokens.
"""

from dataclasses import dataclass, field

from tokenizers import Tokenizer

from shared.messages import FinishReason, Progress, TokenLogprob, Usage
from worker.engines.base import EngineRequest, Output
from worker.engines.detokenizer import Detokenizer
from worker.engines.grammar import Matcher
from worker.engines.prompts import Prompt
from worker.engines.reply import Reply, Unsent
from worker.engines.text import StopMatcher

CONTEXT_TOKENS = 6  # of a prompt, to decode the first token of its continuation


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model says about where its sequences end, and which of its tokens are no text."""

    eos_ids: frozenset[int]
    max_model_len: int
    special_ids: frozenset[int] = field(default_factory=frozenset)


class Completion:
    """`push` takes each token of the completion, also those another worker made (resume)."""

    def __init__(
        self, request: EngineRequest, prompt: Prompt, limits: Limits, tokenizer: Tokenizer, matcher: Matcher | None
    ) -> None:
        self.id = request.id
        self._tokenizer = tokenizer
        self._untold = 0
        self.ids = list(prompt.ids)  # of the prompt, then of the completion
        self.grammar = prompt.grammar
        self.matcher = matcher  # where it is in that
        self.params = request.sampling
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.cached: int | None = None  # tokens of the prompt that were not computed
        self.prompt_tokens = len(prompt.ids)
        room = limits.max_model_len - len(prompt.ids)
        self._max_tokens = room if self.params.max_tokens is None else min(room, self.params.max_tokens)
        # A grammar that is complete ends the reply, whatever else was asked for.
        self._eos_ids = frozenset() if self.params.ignore_eos and matcher is None else limits.eos_ids
        self._ends = self._eos_ids | frozenset(self.params.stop_token_ids)
        self.eos_ids = sorted(limits.eos_ids)
        context = prompt.ids[-CONTEXT_TOKENS:] if request.kind == "completion" else []
        hidden = limits.special_ids - prompt.parser.keep if prompt.parser else limits.special_ids
        unsent = Unsent(request.resume)
        detokenizer = Detokenizer(tokenizer, context, hidden)
        self._reply = Reply(detokenizer, StopMatcher(self.params.stop), prompt.parser, unsent)
        self._prompt_logprobs: list[TokenLogprob] = []
        replayed = request.resume.token_ids if request.resume is not None else []
        if self.params.echo:
            unsent.add(Progress(text=self._prompt_text()))
        self.scores_prompt = self.params.echo and self.params.logprobs is not None and not replayed
        for token_id in replayed:
            if self.finish_reason is None:
                self.push(token_id)
        if self.finish_reason is None and self.tokens_left == 0 and not self.scores_prompt:
            self._finish("length")

    def _prompt_text(self) -> str:
        prompt = self.request.payload["prompt"]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(self.ids, skip_special_tokens=False)

    @property
    def completion_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    @property
    def tokens_left(self) -> int:
        """That may still be made."""
        return max(0, self._max_tokens - self.completion_tokens)

    def score_prompt(self, scored: list[TokenLogprob]) -> None:
        """Takes the next of the prompt's tokens. After the last of them the completion begins, or all is done."""
        self._prompt_logprobs += scored

    def scored(self) -> None:
        """The whole prompt is."""
        self.scores_prompt = False
        if self._max_tokens == 0:
            self._finish("length")

    @property
    def ends(self) -> list[int]:
        """The tokens that end it, and are no part of its text."""
        return sorted(self._ends)

    def ends_with(self, token_id: int) -> bool:
        return token_id in self._ends

    def push(self, token_id: int) -> None:
        """The completion grows by a token, which may end it. Raises InvalidRequest where its grammar forbids it."""
        self.ids.append(token_id)
        ends = self.ends_with(token_id)
        if self.matcher is not None:
            self.matcher.push(None if ends else token_id)
        if ends:
            self._finish("stop")
            return
        self._reply.push(token_id)
        if self._reply.stop is not None or (self.matcher is not None and self.matcher.is_done):
            self._finish("stop")
        elif self.tokens_left == 0:
            self._finish("length")

    def stop(self) -> None:
        """It ends here, by a token that is not among those known here."""
        self._finish("stop")

    def cut(self, untold: int) -> None:
        """It ends here, at its limit, with so many tokens more, of which only that is known."""
        self._untold = untold
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
            self.prompt_tokens,
            self.completion_tokens + self._untold,
            self.cached or 0,
            reasoning_tokens=self._reply.reasoning_tokens,
        )

    def banned(self, index: int) -> list[int]:
        """What ends a completion, while it may not end: as its token number `index`."""
        return self.ends if index < self.params.min_tokens else self.never

    @property
    def never(self) -> list[int]:
        """Tokens that end it only where nothing else can follow."""
        return sorted(self._eos_ids) if self.params.ignore_eos and self.matcher is not None else []
