"""What is done for a request before any token is computed, whoever computes them: prompt, grammar, limits."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from llguidance import LLTokenizer
from tokenizers import Tokenizer

from shared.messages import TokenLogprob
from worker.engines.base import EngineRequest, Output
from worker.engines.completion import Completion, Limits
from worker.engines.detokenizer import special_ids
from worker.engines.grammar import Grammars, Matcher, bytes_of_tokens
from worker.engines.logprobs import Pieces
from worker.engines.options import EngineOptions
from worker.engines.prompts import Prompt, PromptReader

Some = TypeVar("Some", bound=Completion)
Make = Callable[[EngineRequest, Prompt, Limits, Tokenizer, Matcher | None], Some]


class Frontend:
    """For one generation model. vocabulary: places in its logits. threads: for the masks of grammars."""

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: int,
        max_model_len: int,
        eos_ids: frozenset[int],
        options: EngineOptions,
        threads: int = 1,
        as_known: Callable[[str], str] = str,
    ) -> None:
        """as_known: of a grammar, what the engine's own llguidance understands of it."""
        self.tokenizer: Tokenizer = tokenizer.backend_tokenizer
        self._vocabulary = vocabulary
        self._threads = threads
        self._as_known = as_known
        self._limits = Limits(eos_ids, max_model_len, special_ids(self.tokenizer))
        self._prompts = PromptReader(
            tokenizer,
            vocabulary,
            max_model_len,
            tool_call_parser=options.tool_call_parser,
            reasoning_parser=options.reasoning_parser,
        )

    # Made when they are first needed, which is while a request is prepared.

    @cached_property
    def bytes_of_tokens(self) -> LLTokenizer:
        return bytes_of_tokens(self.tokenizer, self._vocabulary, self._limits.eos_ids)

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.bytes_of_tokens, self._threads)

    @cached_property
    def pieces(self) -> Pieces:
        return Pieces(self.tokenizer, self.bytes_of_tokens)

    def prepare(self, request: EngineRequest, make: "Make[Some]") -> Some | Output:
        """The completion that is to be made, or the answer. Raises TokenbusError for what the client got wrong."""
        if (answer := self._prompts.answer(request)) is not None:
            return answer
        prompt = self._prompts.read(request)
        sampling = request.sampling
        self._prompts.check_ids(list(sampling.logit_bias), "logit_bias")
        self._prompts.check_ids(list(sampling.stop_token_ids), "stop_token_ids")
        if request.resume is not None:
            self._prompts.check_ids(request.resume.token_ids, "resume")
        matcher = None
        if prompt.grammar is not None:
            grammar = self._as_known(prompt.grammar)
            prompt, matcher = replace(prompt, grammar=grammar), self.grammars.matcher(grammar)
        completion = make(request, prompt, self._limits, self.tokenizer, matcher)
        if sampling.logprobs is not None:
            text, raw = self.pieces(prompt.ids[0])
            if completion.scores_prompt:
                completion.score_prompt([TokenLogprob(text, None, raw)])
        return completion
