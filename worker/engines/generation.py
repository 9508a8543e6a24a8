"""Generation with iteration-level batching: every step computes the next tokens of all running sequences at once.

`waiting` is first come, first served; `schedule` chooses what a step computes, `step` computes it and draws the
next tokens, `finish` lets a sequence go.
"""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from llguidance import LLTokenizer
from torch import Tensor

from shared.errors import EngineFailed, TokenbusError
from shared.logging import get_logger
from shared.messages import TokenLogprob
from worker.engines.base import EngineInfo, EngineRequest, Output
from worker.engines.checkpoint import Checkpoint
from worker.engines.detokenizer import special_ids
from worker.engines.grammar import Grammars, bytes_of_tokens
from worker.engines.logprobs import Pieces, Scores
from worker.engines.options import EngineOptions
from worker.engines.packed_model import PackedModel
from worker.engines.prompts import PromptReader
from worker.engines.sampling import sample
from worker.engines.sequence import Limits, Sequence

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PromptBudget:
    """Prompt tokens that one step computes, when nobody is being answered and beside those who are.

    The second bounds the pause that a long prompt makes in their streams.
    """

    alone: int
    beside: int


# SmolLM2-135M on one core: 64 tokens take 0.2 s at 85% of the speed of 512, which take 1.4 s.
ON_CPU = PromptBudget(alone=256, beside=64)
ON_GPU = PromptBudget(alone=2048, beside=512)
# Prompt tokens of which a step computes all logits: 200 KB each for 49,152 tokens, and twice that to score them.
SCORED = 256
NOT_A_NUMBER = "The model computed something that is not a number."


class GenerationStepper:
    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._slots = options.slots
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def load(self) -> EngineInfo:
        tokenizer = self._checkpoint.tokenizer()
        max_model_len = self._checkpoint.max_model_len()
        model = self._checkpoint.causal_model()
        self._model = PackedModel(model)
        self.budget = ON_CPU if self._checkpoint.device.type == "cpu" else ON_GPU
        self._tokenizer = tokenizer.backend_tokenizer
        self._limits = Limits(self._checkpoint.eos_ids(model, tokenizer), max_model_len, special_ids(self._tokenizer))
        self._prompts = PromptReader(
            tokenizer,
            self._model.vocabulary,
            max_model_len,
            tool_call_parser=self._options.tool_call_parser,
            reasoning_parser=self._options.reasoning_parser,
        )
        return EngineInfo(
            name="transformers",
            fingerprint=self._checkpoint.fingerprint(model, tokenizer),
            max_model_len=max_model_len,
            slots=self._slots,
            resumable=True,
        )

    # Made when they are first needed, which is while a request is prepared.

    @cached_property
    def _bytes_of_tokens(self) -> LLTokenizer:
        return bytes_of_tokens(self._tokenizer, self._model.vocabulary, self._limits.eos_ids)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._bytes_of_tokens)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self._tokenizer, self._bytes_of_tokens)

    def prepare(self, request: EngineRequest) -> Sequence | Output:
        if (answer := self._prompts.answer(request)) is not None:
            return answer
        prompt = self._prompts.read(request)
        sampling = request.sampling
        self._prompts.check_ids(list(sampling.logit_bias), "logit_bias")
        self._prompts.check_ids(list(sampling.stop_token_ids), "stop_token_ids")
        if request.resume is not None:
            self._prompts.check_ids(request.resume.token_ids, "resume")
        matcher = None if prompt.grammar is None else self._grammars.matcher(prompt.grammar)
        sequence = Sequence(request, prompt, self._limits, self._tokenizer, matcher)
        if sampling.logprobs is not None:
            text, raw = self._pieces(prompt.ids[0])
            if sequence.scores_prompt:
                sequence.score_prompt([TokenLogprob(text, None, raw)])
        return sequence

    def add(self, prepared: Sequence) -> None:
        self.waiting.append(prepared)

    def abort(self, request_id: str) -> None:
        self.running = [sequence for sequence in self.running if sequence.id != request_id]
        self.waiting = deque(sequence for sequence in self.waiting if sequence.id != request_id)

    def abort_all(self) -> list[str]:
        ids = [sequence.id for sequence in (*self.running, *self.waiting)]
        self.running.clear()
        self.waiting.clear()
        return ids

    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def schedule(self) -> list[tuple[Sequence, list[int]]]:
        """What to compute next: a token for each sequence that is being answered, then parts of prompts."""
        while self.waiting and len(self.running) < self._slots:
            self.running.append(self.waiting.popleft())
        batch = [
            (sequence, sequence.next_tokens(1))
            for sequence in self.running
            if sequence.uncomputed == 1 and not sequence.scores_prompt
        ]
        budget, scored = (self.budget.beside if batch else self.budget.alone), SCORED
        for sequence in self.running:
            if sequence.uncomputed > 1 or sequence.scores_prompt:
                tokens = sequence.next_tokens(min(budget, scored) if sequence.scores_prompt else budget)
                if not tokens:
                    continue
                batch.append((sequence, tokens))
                budget -= len(tokens)
                scored -= len(tokens) if sequence.scores_prompt else 0
        return batch

    @torch.inference_mode()
    def step(self) -> list[Output]:
        outputs = self._let_go_of_ended()
        batch = self.schedule()
        if not batch:
            return outputs
        ready = [len(tokens) == sequence.uncomputed for sequence, tokens in batch]
        wanted = [
            len(tokens) if sequence.scores_prompt else int(is_ready)
            for is_ready, (sequence, tokens) in zip(ready, batch, strict=True)
        ]
        logits = self._model.forward([(sequence.cache, tokens) for sequence, tokens in batch], wanted)
        sequences = [sequence for is_ready, (sequence, _) in zip(ready, batch, strict=True) if is_ready]
        if sum(wanted) > len(sequences):
            outputs += self._score_prompts(logits, [sequence for sequence, _ in batch], wanted)
            last = [end - 1 for is_ready, end in zip(ready, accumulate(wanted), strict=True) if is_ready]
            places = [place for place, sequence in enumerate(sequences) if sequence in self.running]
            sequences, logits = [sequences[place] for place in places], logits[[last[place] for place in places]]
        return outputs + self._draw(sequences, logits) if sequences else outputs

    def _score_prompts(self, logits: Tensor, sequences: list[Sequence], wanted: list[int]) -> list[Output]:
        """The ends of those of which nothing more was asked."""
        outputs, end = [], 0
        for sequence, rows in zip(sequences, wanted, strict=True):
            end += rows
            if sequence.scores_prompt:
                ids = sequence.next_prompt_ids(rows)
                scores = Scores(logits[end - rows : end][: len(ids)], [sequence.params.logprobs or 0] * len(ids))
                sequence.score_prompt(scores.tokens(ids, self._pieces))
                if not scores.are_numbers:
                    outputs.append(Output(id=sequence.id, error=EngineFailed(NOT_A_NUMBER)))
                elif sequence.finish_reason is not None:
                    outputs.append(sequence.output([], []))
                else:
                    continue
                self.finish(sequence)
        return outputs

    def _draw(self, sequences: list[Sequence], logits: Tensor) -> list[Output]:
        """The next token of each, from float32 logits [sequences, vocabulary]."""
        asked = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        scores = Scores(logits[asked], [sequences[row].params.logprobs or 0 for row in asked]) if asked else None
        matchers = [(row, sequence.matcher) for row, sequence in enumerate(sequences) if sequence.matcher is not None]
        if matchers:
            self._grammars.constrain(logits, matchers)
        drawn = sample(logits, [sequence.draw(logits.shape[1], logits.device) for sequence in sequences])
        logprobs: dict[int, list[TokenLogprob]] = {}
        if scores is not None:
            ids = [drawn[row] or 0 for row in asked]
            ends = [sequences[row].ends_with(token_id) for row, token_id in zip(asked, ids, strict=True)]
            tokens = scores.tokens(ids, self._pieces, ends)
            logprobs = {row: [token] for row, token in zip(asked, tokens, strict=True)}
        return [
            self._advance(sequence, token_id, logprobs.get(row, []))
            for row, (sequence, token_id) in enumerate(zip(sequences, drawn, strict=True))
        ]

    def _let_go_of_ended(self) -> list[Output]:
        """Sequences that were at their end when they came: what another worker made of them was all."""
        ended = [sequence for sequence in self.waiting if sequence.finish_reason is not None]
        for sequence in ended:
            self.waiting.remove(sequence)
        return [sequence.output([], []) for sequence in ended]

    def _advance(self, sequence: Sequence, token_id: int | None, logprobs: list[TokenLogprob]) -> Output:
        try:
            if token_id is None:
                raise EngineFailed(NOT_A_NUMBER)
            sequence.push(token_id)
            output = sequence.output([token_id], logprobs)
        except TokenbusError as error:
            output = Output(id=sequence.id, error=error)
        except Exception as error:  # of this sequence alone, unlike what goes wrong in the forward pass
            log.exception("request %s failed", sequence.id)
            output = Output(id=sequence.id, error=EngineFailed(f"The engine failed: {error}"))
        if output.ends:
            self.finish(sequence)
        return output

    def finish(self, sequence: Sequence) -> None:
        """Frees its slot and its memory."""
        self.running.remove(sequence)
