"""Generation with iteration-level batching: every step computes the next tokens of all running sequences at once.

`waiting` is first come, first served; `schedule` chooses what a step computes, `step` computes it and draws the
next tokens, `finish` lets a sequence go.
"""

from collections import deque
from dataclasses import dataclass

import torch

from shared.errors import EngineFailed
from shared.logging import get_logger
from worker.engines.base import EngineInfo, EngineRequest, Output
from worker.engines.checkpoint import Checkpoint
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
        self._limits = Limits(self._checkpoint.eos_ids(model, tokenizer), max_model_len)
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

    def prepare(self, request: EngineRequest) -> Sequence | Output:
        if (answer := self._prompts.answer(request)) is not None:
            return answer
        prompt = self._prompts.read(request)
        if request.resume is not None:
            self._prompts.check_ids(request.resume.token_ids, "resume")
        return Sequence(request, prompt.ids, self._limits, self._tokenizer)

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
        batch = [(sequence, sequence.next_tokens(1)) for sequence in self.running if sequence.uncomputed == 1]
        budget = self.budget.beside if batch else self.budget.alone
        for sequence in self.running:
            if sequence.uncomputed > 1 and budget > 0:
                tokens = sequence.next_tokens(budget)
                batch.append((sequence, tokens))
                budget -= len(tokens)
        return batch

    @torch.inference_mode()
    def step(self) -> list[Output]:
        outputs = self._let_go_of_ended()
        batch = self.schedule()
        if not batch:
            return outputs
        ready = [place for place, (sequence, tokens) in enumerate(batch) if len(tokens) == sequence.uncomputed]
        logits = self._model.forward([(sequence.cache, tokens) for sequence, tokens in batch], ready)
        sequences = [batch[place][0] for place in ready]
        tokens = sample(logits, [sequence.draw(logits.shape[1], logits.device) for sequence in sequences])
        outputs += [self._advance(sequence, token) for sequence, token in zip(sequences, tokens, strict=True)]
        return outputs

    def _let_go_of_ended(self) -> list[Output]:
        """Sequences that were at their end when they came: what another worker made of them was all."""
        ended = [sequence for sequence in self.waiting if sequence.finish_reason is not None]
        for sequence in ended:
            self.waiting.remove(sequence)
        return [sequence.output([]) for sequence in ended]

    def _advance(self, sequence: Sequence, token_id: int | None) -> Output:
        try:
            if token_id is None:
                raise EngineFailed("The model computed something that is not a number.")
            sequence.push(token_id)
            output = sequence.output([token_id])
        except EngineFailed as error:
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
