"""Generation with iteration-level batching: every step computes the next tokens of all running sequences at once.

`waiting` is first come, first served; `schedule` chooses what a step computes, `step` computes it and draws the
next tokens, `finish` lets a sequence go.
"""

from collections import deque
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from shared.errors import EngineFailed, StartupError, TokenbusError, one_line
from shared.logging import get_logger
from shared.messages import TokenLogprob
from worker.engines.adapter_files import fingerprint_of_adapter
from worker.engines.base import EngineInfo, EngineRequest, Output
from worker.engines.budget import Model, cache_tokens, step_budget
from worker.engines.checkpoint import Checkpoint
from worker.engines.figures import CacheFigures, HitRate
from worker.engines.frontend import Frontend
from worker.engines.logprobs import Scores
from worker.engines.lora import Adapters
from worker.engines.options import SLOTS, EngineOptions
from worker.engines.packed_model import NotPackableError, PackedModel
from worker.engines.penalties import Penalties
from worker.engines.plain_model import PlainModel
from worker.engines.sampling import check_kernels, places_of, sample
from worker.engines.sequence import Sequence
from worker.engines.tensor_parallel import DealtOutModel, Group
from worker.engines.transfer import sent

log = get_logger(__name__)


# Prompt tokens of which a step computes all logits: 200 KB each for 49,152 tokens, and twice that to score them.
SCORED = 256
SLOTS_ON_GPU = 256
NOT_A_NUMBER = "The model computed something that is not a number."


class Flight:
    """A step whose tokens are drawn, and perhaps not known yet."""

    def __init__(self, sequences: list[Sequence], drawn: Tensor, scored: list[int], scores: Scores | None) -> None:
        """drawn: int64 [sequences], where it is computed. scored: which of them want their probability."""
        self.sequences = sequences
        self.drawn = drawn
        self.scored = scored
        self.scores = scores
        self._host = drawn.to("cpu", non_blocking=drawn.is_cuda)  # elsewhere nothing would say when it has arrived
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
        self._on_gpu = checkpoint.device.type == "cuda"
        self._slots = options.slots or (SLOTS_ON_GPU if self._on_gpu else SLOTS)
        self._at_once = self._slots  # fewer, after a step that there was no memory for
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._hit_rate = HitRate()
        self._flight: Flight | None = None
        self._outputs: list[Output] = []  # made, and not handed over: a step that fails loses none

    def load(self) -> EngineInfo:
        tokenizer = self._checkpoint.tokenizer()
        max_model_len = self._checkpoint.max_model_len()
        if self._on_gpu:
            check_kernels(self._checkpoint.device, self._checkpoint.config.get_text_config().vocab_size)
        self._model, fingerprint, eos_ids = self._load_model(tokenizer, max_model_len)
        self._penalties = Penalties(self._slots, max_model_len, self._model.vocabulary, self._model.device)
        self.budget = step_budget(self._model)
        tokens = cache_tokens(self._model, self.budget, self._slots, self._options.gpu_memory_utilization)
        self._cache = self._model.hold(tokens)
        self._model.capture(self._slots, self.budget.beside, partial(tqdm, desc="capturing CUDA graphs"))
        vocabulary, threads = self._model.vocabulary, torch.get_num_threads()
        self._frontend = Frontend(tokenizer, vocabulary, max_model_len, eos_ids, self._options, threads)
        return EngineInfo(
            name="transformers",
            fingerprint=fingerprint,
            max_model_len=max_model_len,
            slots=self._slots,
            resumable=True,
            adapters={name: fingerprint_of_adapter(fingerprint, path) for name, path in self._options.lora_modules},
        )

    def _load_model(self, tokenizer: Any, max_model_len: int) -> tuple[Model, str, frozenset[int]]:
        """The model, its fingerprint and what ends its sequences."""
        several = self._options.tensor_parallel_size > 1
        group = Group(self._options, self._checkpoint.device) if several else None
        adapters = self._adapters()
        model = self._checkpoint.causal_model()
        # Of the weights as they are stored: they may be stacked, or ordered otherwise, on this machine.
        found = self._checkpoint.fingerprint(model, tokenizer), self._checkpoint.eos_ids(model, tokenizer)
        try:
            compiled = self._on_gpu and not self._options.enforce_eager
            packed = PackedModel(model, max_model_len, compiled=compiled, adapters=adapters)
            return packed if group is None else DealtOutModel(packed, group), *found
        except NotPackableError as problem:  # which holds on to the model until it is forgotten
            if group is not None:
                raise StartupError(f"--tensor-parallel-size: {problem}") from problem
            name, why, is_intact = type(model).__name__, str(problem), problem.is_intact
        if not is_intact:
            del model  # there may be no room for both
            model = self._checkpoint.causal_model()
        plain = PlainModel(model, max_model_len, adapters)
        log.warning("%s is computed %s, slower: %s", name, plain.way.value, why)
        return plain, *found

    def _adapters(self) -> Adapters | None:
        given = self._options.lora_modules
        if given and (self._options.tensor_parallel_size > 1 or self._options.num_gpus > 1):
            raise StartupError("--lora-modules does not go together with --num-gpus and --tensor-parallel-size")
        return Adapters(given) if given else None

    def prepare(self, request: EngineRequest) -> Sequence | Output:
        return self._frontend.prepare(request, Sequence)

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
        self._cache.clear()  # a step that failed may have left anything there
        self._flight = None
        return [sequence.id for sequence in sequences]

    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self._outputs)

    def cache(self) -> CacheFigures:
        extents = [sequence.row.extent for sequence in list(self.running)]
        held = sum(extent.size for extent in extents if extent is not None)
        return CacheFigures(held / self._cache.space.tokens, self._hit_rate.share())

    def schedule(self) -> list[tuple[Sequence, list[int]]]:
        """What to compute next: a token for each sequence that is being answered, then parts of prompts."""
        self._admit()
        decodes = [one for one in self.running if one.uncomputed == 1 and not one.scores_prompt and not one.is_full]
        batch = [(sequence, sequence.next_tokens(1)) for sequence in decodes if self._has_room(sequence)]
        beside, scored = self.budget.beside, SCORED
        budget = max(beside - len(batch), beside // 2) if batch else self.budget.alone
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
        """First come, first served, as long as there is a slot and room for the prompt. Who begins like a prompt that
        is being computed waits for it: nothing after it would be computed before either."""
        while self.waiting and len(self.running) < self._at_once:
            sequence = self.waiting[0]
            if sequence.flight is not None or not self._cache.begin(sequence.row, share=not sequence.scores_prompt):
                return
            if sequence.begin():
                self._hit_rate.add(sequence.prompt_tokens, sequence.cached or 0)
            self.running.append(self.waiting.popleft())

    def _has_room(self, sequence: Sequence) -> bool:
        """For a token more of it. Those that came last make room, and are computed again later."""
        while sequence.row.extent is not None and not self._cache.reserve(sequence.row, sequence.row.length + 1):
            last = next((one for one in reversed(self.running) if not one.scores_prompt), sequence)
            self._put_back(last)
        return sequence.row.extent is not None

    def _put_back(self, sequence: Sequence) -> None:
        """It is the next to begin, and computed again."""
        self.running.remove(sequence)
        self._cache.release(sequence.row)
        sequence.leave(self._penalties)
        self.waiting.appendleft(sequence)

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """A step is launched before the tokens of the one before are known, where nothing depends on them: a GPU
        computes while their text is read."""
        try:
            self._step()
        except torch.OutOfMemoryError as error:
            self._thin_out(error)
        outputs, self._outputs = self._outputs, []
        return outputs

    def _step(self) -> None:
        self._let_go_of_ended()
        if self._flight is not None and not all(sequence.runs_ahead for sequence in self.running):
            self._land()
        launched = self._launch()
        self._land()
        self._flight = launched
        if not self._on_gpu:
            self._land()

    def _thin_out(self, error: torch.OutOfMemoryError) -> None:
        """After a step that found no memory beside that of keys and values: the older half is computed again without
        the others, which wait until some of it have ended. What has no room alone fails, alone."""
        log.warning("no memory for a step of %d sequences: %s", len(self.running), one_line(error))
        self._flight = None
        for sequence in [*self.running, *self.waiting]:
            sequence.flight = None  # what it drew is not known, and is drawn again
        if len(self.running) == 1:
            (sequence,) = self.running
            failure = EngineFailed(f"There is no memory to compute it: {one_line(error)}")
            self._outputs.append(Output(id=sequence.id, error=failure))
            self.finish(sequence)
            self._cache.release(sequence.row)
            return
        self._at_once = max(1, len(self.running) // 2)
        for sequence in reversed(self.running.copy()):
            self._put_back(sequence)

    def _launch(self) -> Flight | None:
        batch = self.schedule()
        if not batch:
            return None
        ready = [len(tokens) == sequence.uncomputed for sequence, tokens in batch]
        wanted = [
            len(tokens) if sequence.scores_prompt else int(is_ready)
            for is_ready, (sequence, tokens) in zip(ready, batch, strict=True)
        ]
        drawn = None if self._flight is None else self._flight.drawn
        logits = self._model.forward([(sequence.row, tokens) for sequence, tokens in batch], wanted, drawn)
        sequences = [sequence for is_ready, (sequence, _) in zip(ready, batch, strict=True) if is_ready]
        if any(sequence.scores_prompt for sequence, _ in batch):
            self._score_prompts(logits.float(), [sequence for sequence, _ in batch], wanted)
            last = [end - 1 for is_ready, end in zip(ready, accumulate(wanted), strict=True) if is_ready]
            places = [place for place, sequence in enumerate(sequences) if not sequence.is_over]
            kept = sent([last[place] for place in places], torch.int64, logits.device)
            sequences, logits = [sequences[place] for place in places], logits[kept]
        return self._draw(sequences, logits) if sequences else None

    def _score_prompts(self, logits: Tensor, sequences: list[Sequence], wanted: list[int]) -> None:
        """Ends those of which nothing more was asked."""
        end = 0
        for sequence, rows in zip(sequences, wanted, strict=True):
            end += rows
            if sequence.scores_prompt:
                ids = sequence.next_prompt_ids(rows)
                own, tops = logits[end - rows : end][: len(ids)], [sequence.params.logprobs or 0] * len(ids)
                scores = Scores(own, tops, sent(ids, torch.int64, logits.device))
                if self._on_gpu:
                    torch.cuda.synchronize()
                sequence.score_prompt(scores.tokens(ids, self._frontend.pieces))
                if not scores.are_numbers:
                    self._cache.release(sequence.row)
                    self._outputs.append(Output(id=sequence.id, error=EngineFailed(NOT_A_NUMBER)))
                elif sequence.finish_reason is not None:
                    self._outputs.append(sequence.output([], []))
                else:
                    continue
                self.finish(sequence)

    def _draw(self, sequences: list[Sequence], logits: Tensor) -> Flight:
        """The next token of each, from logits [sequences, vocabulary]."""
        asked = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        plain = logits[sent(asked, torch.int64, logits.device)].float() if asked else None
        matchers = [(row, sequence.matcher) for row, sequence in enumerate(sequences) if sequence.matcher is not None]
        if matchers:
            forbidden = torch.from_numpy(self._frontend.grammars.forbidden(logits.shape[0], logits.shape[1], matchers))
            logits = logits.float().masked_fill_(forbidden.to(logits.device), -torch.inf)
        drawn = sample(
            logits, [sequence.draw(self._penalties, logits.device) for sequence in sequences], self._penalties
        )
        places, rows = places_of([sequence.penalized for sequence in sequences])
        if places:
            self._penalties.count(rows, drawn[sent(places, torch.int64, drawn.device)])
        scores = None
        if plain is not None:
            tops = [sequences[row].params.logprobs or 0 for row in asked]
            scores = Scores(plain, tops, drawn[sent(asked, torch.int64, drawn.device)].clamp_min(0))
        flight = Flight(sequences, drawn, asked, scores)
        for place, sequence in enumerate(sequences):
            sequence.flight, sequence.place = flight, place
        return flight

    def _land(self) -> None:
        """Takes what the step that was launched last has made."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        drawn = flight.token_ids()
        for sequence in flight.sequences:
            if sequence.flight is flight:
                sequence.flight = None
        logprobs: dict[int, list[TokenLogprob]] = {}
        if flight.scores is not None:
            ids = [max(drawn[row], 0) for row in flight.scored]
            ends = [flight.sequences[row].ends_with(token_id) for row, token_id in zip(flight.scored, ids, strict=True)]
            tokens = flight.scores.tokens(ids, self._frontend.pieces, ends)
            logprobs = {row: [token] for row, token in zip(flight.scored, tokens, strict=True)}
        self._outputs += [
            self._advance(sequence, token_id, logprobs.get(row, []))
            for row, (sequence, token_id) in enumerate(zip(flight.sequences, drawn, strict=True))
            if not sequence.is_over
        ]

    def _let_go_of_ended(self) -> None:
        """Sequences that were at their end when they came: what another worker made of them was all."""
        ended = [sequence for sequence in self.waiting if sequence.finish_reason is not None]
        for sequence in ended:
            self.finish(sequence)
            self._outputs.append(sequence.output([], []))

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
        if token_id < 0:
            self._cache.release(sequence.row)
        return output

    def finish(self, sequence: Sequence) -> None:
        """Frees its slot; what is held of it stays for others that begin alike, until its memory is needed."""
        sequence.is_over = True
        sequence.leave(self._penalties)
        self._at_once = min(self._slots, self._at_once + 1)
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._cache.keep(sequence.row)
