"""A causal language model that computes its rows one after another, with the attention and the cache that are its own:
for models that PackedModel would compute wrongly."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import StartupError
from worker.engines.kv_cache import Row, block_of
from worker.engines.lora import Adapters
from worker.engines.packed_model import CHECK_TOKENS, check_ids, tolerance_of
from worker.engines.row_caches import Held, RowCaches
from worker.engines.staging import Work
from worker.engines.step_cost import Cost, cost_of, prompts

CACHES = ("past_key_values", "cache_params", "state")  # as a model's forward takes it and its output names it
# Of a prompt in one call: eager attention keeps the scores of all heads, [heads, new tokens, length].
MOST_AT_ONCE = 256
PARTS = ((5, 1), (4, 3), (1, 3), (1, 4))  # of two rows of CHECK_TOKENS
ROUNDING = 1e-4


class Way(Enum):
    """How a model takes a row's next tokens, the fastest first. The values say so in the log."""

    CHUNKS = "row by row"
    WHOLE = "row by row, with each prompt in one piece"  # Mamba loses its state where a chunk follows another
    AFRESH = "row by row, with all of its tokens in every step"  # it has no cache, or one cache for all rows


class PlainModel:
    has_graphs = False

    def __init__(self, model: PreTrainedModel, max_model_len: int, adapters: Adapters | None = None) -> None:
        """Finds out which way is right, by the model's plain forward; raises StartupError where none is."""
        self.device = model.device
        self.max_model_len = max_model_len
        self._adapters: Adapters | None = None
        self._model = model.requires_grad_(False)
        self._takes = inspect.signature(model.forward).parameters
        self._cache_name = next((name for name in CACHES if name in self._takes), CACHES[0])
        self._config = model.config.get_text_config()
        self.vocabulary: int = self._config.vocab_size
        with torch.inference_mode():
            self.way = self._find_way()
            self.bytes_per_token = self._measure()
        self._adapters = adapters
        if adapters is not None:
            adapters.attach(self._model, lambda: self.forward([(Row(adapter=1), check_ids(self.vocabulary))], [1]))

    def hold(self, tokens: int) -> RowCaches:
        """Gives it a budget of so many tokens, and drops all that it kept of rows."""
        self.cache = RowCaches(tokens, self.device)
        return self.cache

    def measure(self, tokens: int, rows: int, use: Callable[[Tensor], object] | None = None) -> Cost:
        """As PackedModel.measure. A row of which nothing is wanted might not be computed."""
        work = prompts(tokens, self.max_model_len)
        wanted = [max(1, min(rows - place * self.max_model_len, len(ids))) for place, (_, ids) in enumerate(work)]
        cache = self.hold(tokens)

        def step() -> None:
            logits = self.forward(work, wanted)
            if use is not None:
                use(logits)

        cost = cost_of(step, self.bytes_per_token)
        cache.clear()
        torch.cuda.empty_cache()
        return cost

    def capture(self, most_rows: int, most_tokens: int, progress: Any) -> None:
        """A cache that grows moves, which a CUDA graph cannot follow."""

    @torch.inference_mode()
    def forward(self, work: Sequence[Work], wanted: Sequence[int], drawn: Tensor | None = None) -> Tensor:
        """As PackedModel.forward."""
        logits: list[Tensor] = []
        for (row, ids), last in zip(work, wanted, strict=True):
            if self._adapters is not None:
                self._adapters.choose(torch.tensor([row.adapter], device=self.device))
            given = torch.tensor(ids, device=self.device)
            if drawn is not None:
                given = torch.where(given < 0, drawn[(-1 - given).clamp_min(0)], given)
            logits += self._extend(row, given, last)
        return torch.cat(logits) if logits else torch.empty((0, self.vocabulary), device=self.device)

    def _extend(self, row: Row, ids: Tensor, wanted: int) -> Iterator[Tensor]:
        """Logits of the row's last tokens, as many as are wanted, in order."""
        held = self.cache.held.setdefault(row, Held(ids[:0]))
        row.length += len(ids)
        held.unseen = torch.cat([held.unseen, ids])
        if self.way is not Way.CHUNKS and not wanted:
            return
        left = len(held.unseen)
        for part in self._parts(held):
            left -= len(part)
            last = max(0, min(len(part), wanted - left))
            output = self._call(part, row.length - left - len(part), held.cache, last)
            if self.way is not Way.AFRESH:
                held.cache = getattr(output, self._cache_name)
            if last:
                yield output.logits[0, -last:]
        if self.way is not Way.AFRESH:
            held.unseen = held.unseen[:0]

    def _parts(self, held: Held) -> tuple[Tensor, ...]:
        if self.way is Way.CHUNKS:
            return torch.split(held.unseen, MOST_AT_ONCE)
        return (held.unseen,) if held.cache is None else torch.split(held.unseen, 1)

    def _call(self, ids: Tensor, start: int, cache: Any, wanted: int) -> Any:
        arguments: dict[str, Any] = {} if cache is None else {self._cache_name: cache}
        if "position_ids" in self._takes:  # Bamba asks its first layer for them, which does not count
            arguments["position_ids"] = torch.arange(start, start + len(ids), device=self.device).unsqueeze(0)
        if "logits_to_keep" in self._takes:
            arguments["logits_to_keep"] = max(1, wanted)
        return self._model(input_ids=ids.unsqueeze(0), use_cache=self.way is not Way.AFRESH, **arguments)

    # -- start ----------------------------------------------------------------------------------------------------

    def _find_way(self) -> Way:
        ids = check_ids(self.vocabulary)
        expected = self._model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0].float()
        tolerance, errors, why = tolerance_of(self._model), {}, ""
        for way in Way:
            try:
                errors[way] = self._difference(way, ids, expected)
                why = why or f"its logits in parts and as a whole differ by {errors[way]:.2g}"
            except Exception as problem:  # foreign code, called in a way that it may not know
                errors[way] = float("inf")
                why = why or str(problem).strip().partition("\n")[0]
        # In half precision a state that is lost once is no larger an error than rounding may be (Falcon Mamba: 0.08).
        if errors[Way.CHUNKS] > max(2 * errors[Way.WHOLE], ROUNDING):
            del errors[Way.CHUNKS]
        for way, error in errors.items():
            if error < tolerance:
                return way
        raise StartupError(f"the transformers engine does not support {type(self._model).__name__}: {why}")

    def _difference(self, way: Way, ids: list[int], expected: Tensor) -> float:
        """Relative error of the logits of two rows that are computed in parts, in turn."""
        self.way = way
        self.hold(0)
        rows, got = (Row(), Row()), torch.empty((2, *expected.shape), device=self.device)
        for sizes in PARTS:
            spans = [slice(row.length, row.length + size) for row, size in zip(rows, sizes, strict=True)]
            work = [(row, ids[span]) for row, span in zip(rows, spans, strict=True)]
            logits = torch.split(self.forward(work, sizes).float(), list(sizes))
            for place, span in enumerate(spans):
                got[place, span] = logits[place]
        return float((got - expected).norm() / (2**0.5 * expected.norm()))

    def _measure(self) -> dict[torch.device, int]:
        """Bytes on each device. What a row needs of any length is counted with the tokens of its first block."""
        row, ids = Row(), check_ids(self.vocabulary)
        cache, few = self.hold(0), CHECK_TOKENS // 2
        sizes = []
        for part in (ids[:few], ids[few:]):
            self.forward([(row, part)], [1])
            sizes.append(cache.held[row].sizes())
        bytes_per_token = {}
        for device, size in sizes[1].items():
            growth = max(0, size - sizes[0][device]) // (CHECK_TOKENS - few)
            constant = max(0, sizes[0][device] - few * growth)
            bytes_per_token[device] = max(1, growth + -(-constant // block_of(self.device)))
        return bytes_per_token
