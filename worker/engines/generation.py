"""Generation with iteration-level batching: every step computes the next tokens of all running sequences at once.

`waiting` is first come, first served; `schedule` chooses what a step computes, `step` computes it and draws the
next tokens, `finish` lets a sequence go.
"""

from collections import deque
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate

import psutil
import torch
from llguidance import LLTokenizer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from shared.errors import EngineFailed, StartupError, TokenbusError
from shared.logging import get_logger
from shared.messages import TokenLogprob
from worker.engines.base import EngineInfo, EngineRequest, Output
from worker.engines.checkpoint import Checkpoint
from worker.engines.detokenizer import special_ids
from worker.engines.grammar import Grammars, bytes_of_tokens
from worker.engines.logprobs import Pieces, Scores
from worker.engines.options import EngineOptions
from worker.engines.packed_model import NotPackableError, PackedModel
from worker.engines.plain_model import PlainModel
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
ON_GPU = PromptBudget(alone=8192, beside=2048)
# Prompt tokens of which a step computes all logits: 200 KB each for 49,152 tokens, and twice that to score them.
SCORED = 256
GPU_MEMORY_UTILIZATION = 0.9  # of all that the GPU has: weights, cache and what a step needs
CPU_MEMORY_UTILIZATION = 0.5  # of what is free
NOT_A_NUMBER = "The model computed something that is not a number."


class Flight:
    """A step whose tokens are drawn, and perhaps not known yet."""

    def __init__(self, sequences: list[Sequence], drawn: Tensor, scored: list[int], scores: Scores | None) -> None:
        """drawn: int64 [sequences], where it is computed. scored: which of them want their probability."""
        self.sequences = sequences
        self.drawn = drawn
        self.scored = scored
        self.scores = scores
        self._host = drawn.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if drawn.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def token_ids(self) -> list[int]:
        """Waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        ids: list[int] = self._host.tolist()
        return ids


class GenerationStepper:
    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._slots = options.slots
        self._on_gpu = checkpoint.device.type == "cuda"
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._flight: Flight | None = None

    def load(self) -> EngineInfo:
        tokenizer = self._checkpoint.tokenizer()
        max_model_len = self._checkpoint.max_model_len()
        model, self._model = self._load_model()
        self.budget = ON_GPU if self._on_gpu else ON_CPU
        self._cache = self._model.hold(min(self._slots * max_model_len, self._tokens_that_fit(max_model_len)))
        if self._on_gpu:
            self._model.capture(self._slots, max_model_len, partial(tqdm, desc="capturing CUDA graphs"))
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

    def _load_model(self) -> tuple[PreTrainedModel, PackedModel | PlainModel]:
        """The model as it was loaded, and as it is computed."""
        model = self._checkpoint.causal_model()
        try:
            return model, PackedModel(model)
        except NotPackableError as problem:
            why, is_intact = str(problem), problem.is_intact
        if not is_intact:
            del model  # there may be no room for both
            model = self._checkpoint.causal_model()
        plain = PlainModel(model)
        log.warning("%s is computed %s, slower: %s", type(model).__name__, plain.way.value, why)
        return model, plain

    def _tokens_that_fit(self, max_model_len: int) -> int:
        """In what is left of the memory. Raises StartupError where that is less than one sequence may have."""
        if self._on_gpu:
            left = self._model.memory_left(self.budget.alone, self._slots, GPU_MEMORY_UTILIZATION)
        else:
            left = int(psutil.virtual_memory().available * CPU_MEMORY_UTILIZATION)
        tokens = left // self._model.bytes_per_token
        if tokens < max_model_len:
            raise StartupError(
                f"the memory that is left holds keys and values of {max(tokens, 0)} tokens, and one sequence may have "
                f"{max_model_len}; try --max-model-len"
            )
        return tokens

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
        for sequence in [*self.running, *self.waiting]:
            if sequence.id == request_id:
                self.finish(sequence)

    def abort_all(self) -> list[str]:
        sequences = [*self.running, *self.waiting]
        for sequence in sequences:
            self.finish(sequence)
        self._flight = None
        return [sequence.id for sequence in sequences]

    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def schedule(self) -> list[tuple[Sequence, list[int]]]:
        """What to compute next: a token for each sequence that is being answered, then parts of prompts."""
        self._admit()
        decodes = [one for one in self.running if one.uncomputed == 1 and not one.scores_prompt and not one.is_full]
        batch = [(sequence, sequence.next_tokens(1)) for sequence in decodes if self._has_room(sequence, 1)]
        budget, scored = (self.budget.beside if batch else self.budget.alone), SCORED
        for sequence in self.running:
            if sequence.uncomputed > 1 or sequence.scores_prompt:
                tokens = sequence.next_tokens(min(budget, scored) if sequence.scores_prompt else budget)
                if not tokens:
                    continue
                batch.append((sequence, tokens))
                budget -= len(tokens)
                scored -= len(tokens) if sequence.scores_prompt else 0
        return [(sequence, tokens) for sequence, tokens in batch if sequence.row.extent is not None]

    def _admit(self) -> None:
        """First come, first served, as long as there is a slot and room for the prompt."""
        while self.waiting and len(self.running) < self._slots:
            sequence = self.waiting[0]
            if sequence.flight is not None or not self._cache.reserve(sequence.row, sequence.uncomputed + 1):
                return
            self.running.append(self.waiting.popleft())

    def _has_room(self, sequence: Sequence, tokens: int) -> bool:
        """For more tokens of it. Those that came last make room, and are computed again later."""
        while sequence.row.extent is not None and not self._cache.reserve(sequence.row, sequence.row.length + tokens):
            last = next((one for one in reversed(self.running) if not one.scores_prompt), sequence)
            self.running.remove(last)
            self._cache.release(last.row)
            self.waiting.appendleft(last)
        return sequence.row.extent is not None

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """A step is launched before the tokens of the one before are known, where nothing depends on them: a GPU
        computes while their text is read."""
        outputs = self._let_go_of_ended()
        if self._flight is not None and not all(sequence.runs_ahead for sequence in self.running):
            outputs += self._land()
        launched, scored = self._launch()
        outputs += scored + self._land()
        self._flight = launched
        if not self._on_gpu:
            outputs += self._land()
        return outputs

    def _launch(self) -> tuple[Flight | None, list[Output]]:
        batch = self.schedule()
        if not batch:
            return None, []
        outputs: list[Output] = []
        ready = [len(tokens) == sequence.uncomputed for sequence, tokens in batch]
        wanted = [
            len(tokens) if sequence.scores_prompt else int(is_ready)
            for is_ready, (sequence, tokens) in zip(ready, batch, strict=True)
        ]
        drawn = None if self._flight is None else self._flight.drawn
        logits = self._model.forward([(sequence.row, tokens) for sequence, tokens in batch], wanted, drawn)
        sequences = [sequence for is_ready, (sequence, _) in zip(ready, batch, strict=True) if is_ready]
        if sum(wanted) > len(sequences):
            outputs = self._score_prompts(logits.float(), [sequence for sequence, _ in batch], wanted)
            last = [end - 1 for is_ready, end in zip(ready, accumulate(wanted), strict=True) if is_ready]
            places = [place for place, sequence in enumerate(sequences) if not sequence.is_over]
            sequences, logits = [sequences[place] for place in places], logits[[last[place] for place in places]]
        return (self._draw(sequences, logits) if sequences else None), outputs

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

    def _draw(self, sequences: list[Sequence], logits: Tensor) -> Flight:
        """The next token of each, from logits [sequences, vocabulary]."""
        asked = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        scores = None
        if asked:
            scores = Scores(logits[asked].float(), [sequences[row].params.logprobs or 0 for row in asked])
        matchers = [(row, sequence.matcher) for row, sequence in enumerate(sequences) if sequence.matcher is not None]
        if matchers:
            logits = logits.float()
            self._grammars.constrain(logits, matchers)
        drawn = sample(logits, [sequence.draw(logits.shape[1], logits.device) for sequence in sequences])
        flight = Flight(sequences, drawn, asked, scores)
        for place, sequence in enumerate(sequences):
            sequence.flight, sequence.place = flight, place
        return flight

    def _land(self) -> list[Output]:
        """What the step that was launched last has made."""
        flight, self._flight = self._flight, None
        if flight is None:
            return []
        drawn = flight.token_ids()
        for sequence in flight.sequences:
            if sequence.flight is flight:
                sequence.flight = None
        logprobs: dict[int, list[TokenLogprob]] = {}
        if flight.scores is not None:
            ids = [max(drawn[row], 0) for row in flight.scored]
            ends = [flight.sequences[row].ends_with(token_id) for row, token_id in zip(flight.scored, ids, strict=True)]
            tokens = flight.scores.tokens(ids, self._pieces, ends)
            logprobs = {row: [token] for row, token in zip(flight.scored, tokens, strict=True)}
        return [
            self._advance(sequence, token_id, logprobs.get(row, []))
            for row, (sequence, token_id) in enumerate(zip(flight.sequences, drawn, strict=True))
            if not sequence.is_over
        ]

    def _let_go_of_ended(self) -> list[Output]:
        """Sequences that were at their end when they came: what another worker made of them was all."""
        ended = [sequence for sequence in self.waiting if sequence.finish_reason is not None]
        for sequence in ended:
            self.finish(sequence)
        return [sequence.output([], []) for sequence in ended]

    def _advance(self, sequence: Sequence, token_id: int, logprobs: list[TokenLogprob]) -> Output:
        try:
            if token_id < 0:
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
        sequence.is_over = True
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._cache.release(sequence.row)
