"""A causal language model that computes the tokens of many rows, prompt chunks and single tokens, in one forward."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import StartupError
from shared.logging import get_logger
from worker.engines.cpu_linear import bring_into_order, has_bfloat16
from worker.engines.kv_cache import KeyValueCache, Layer, Moved, Row, block_of
from worker.engines.lora import Adapters
from worker.engines.packed_attention import NAME, PASS, Kernels, Packed, UnsupportedAttentionError
from worker.engines.placement import devices_of, is_quantized
from worker.engines.shards import make_plain
from worker.engines.stacked import stack
from worker.engines.staging import Segment, Shape, Staging, Step, Work, shape_for_kernels
from worker.engines.step_cost import NO_ROOM, Cost, cost_of, prompts
from worker.engines.step_graphs import StepGraphs

log = get_logger(__name__)

CHECK_TOKENS = 11
# Relative error of the logits. In half precision two correct kernels differ by about 0.02, wrong ones by about 1.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 0.1


class NotPackableError(Exception):
    """Packed rows would be computed wrongly. `is_intact`: whether the model is as it was before it was tried."""

    def __init__(self, why: str, is_intact: bool) -> None:
        super().__init__(why)
        self.is_intact = is_intact


class PackedModel:
    def __init__(
        self, model: PreTrainedModel, max_model_len: int, *, compiled: bool, adapters: Adapters | None = None
    ) -> None:
        """Checks the model against its own plain forward; raises NotPackableError where packed rows would be wrong.

        compiled: on one GPU its layers are, which takes seconds, and steps can be CUDA graphs where kernels read the
        rows.
        """
        self.device = model.device
        self.max_model_len = max_model_len
        self._may_be_compiled = compiled
        self._adapters = adapters
        self._model = model.requires_grad_(False)
        self._config = model.config.get_text_config()
        self._has_kernels = False
        self._held: KeyValueCache | None = None
        self._graphs: StepGraphs | None = None
        self.vocabulary: int = self._config.vocab_size
        self._staging = Staging(self.device)
        self._is_quantized = is_quantized(model)
        self._is_spread = len(devices_of(model)) > 1
        self._is_rebuilt = False
        implementation = model.config._attn_implementation
        try:
            with torch.inference_mode():
                self._prepare()
        except StartupError:
            raise
        except torch.OutOfMemoryError:
            raise StartupError(NO_ROOM) from None
        except Exception as problem:  # foreign code, run in a way that it may not know
            if self._held is not None:
                self._held.drop()
            model.set_attn_implementation(implementation)
            why = str(problem).strip().partition("\n")[0] or type(problem).__name__
            raise NotPackableError(why, is_intact=not self._is_rebuilt) from problem

    @property
    def bytes_per_token(self) -> Mapping[torch.device, int]:
        """On each device."""
        sizes: Counter[torch.device] = Counter()
        for layer in self._layers.values():
            sizes[layer.device] += layer.bytes_per_token
        return sizes

    def hold(self, tokens: int, moved: Moved | None = None) -> KeyValueCache:
        """Gives it a cache for so many tokens, in place of the one that it has. moved: as KeyValueCache has it."""
        held, self._held = self._held, None  # there may be no room for another
        if held is not None:
            held.drop()
        self._held = KeyValueCache(self._layers, tokens, self.device, moved)
        return self._held

    @property
    def has_graphs(self) -> bool:
        return self._may_be_compiled and self._has_kernels and not self._is_spread

    @property
    def cache(self) -> KeyValueCache:
        assert self._held is not None
        return self._held

    def measure(self, tokens: int, rows: int, use: Callable[[Tensor], object] | None = None) -> Cost:
        """A step of prompts with so many tokens on a GPU, with a cache of its own, the logits of so many rows and what
        is done with them."""
        work = prompts(tokens, self.max_model_len)
        counts = [len(ids) for _, ids in work]
        cache = self.hold(sum(-(-count // block_of(self.device)) * block_of(self.device) for count in counts))
        for row, ids in work:
            cache.reserve(row, len(ids))
        wanted = [
            max(0, min(rows - at, count)) for at, count in zip(accumulate(counts, initial=0), counts, strict=False)
        ]

        def step() -> None:
            logits = self.forward(work, wanted)
            if use is not None:
                use(logits)

        cost = cost_of(step, self.bytes_per_token)
        cache.drop()
        self._held = None
        torch.cuda.empty_cache()
        return cost

    @torch.inference_mode()
    def capture(self, most_rows: int, most_tokens: int, progress: Any) -> None:
        """CUDA graphs of steps for up to so many rows, and where some are prompts, so many tokens; none where rows are
        read one by one, or nothing was to be compiled."""
        if self._may_be_compiled and not self.has_graphs:
            why = "it is spread over GPUs" if self._is_spread else f"kernels cannot read its rows ({self._model.dtype})"
            log.warning("no CUDA graphs for this model, slower: %s", why)
        if not self.has_graphs:
            return
        logits = torch.empty((most_rows, self.vocabulary), dtype=self._model.dtype, device=self.device)
        self._graphs = StepGraphs(self._step, logits, self._staging, self.max_model_len, most_tokens, progress)

    @torch.inference_mode()
    def forward(self, work: Sequence[Work], wanted: Sequence[int], drawn: Tensor | None = None) -> Tensor:
        """Computes each row's next tokens, and returns logits [sum(wanted), vocabulary], row after row. What it is
        given may be changed as soon as it returns.

        work: of each row, the row and the ids that follow what it holds; an id below 0 stands for drawn[-1 - id].
        wanted: of how many of its last tokens the logits are needed.
        """
        return self.run(self.plan(work, wanted), drawn)

    def plan(self, work: Sequence[Work], wanted: Sequence[int]) -> Step:
        """As for `forward`. Whoever calls it runs the step before he plans another."""
        places = _places(work, wanted)
        segments: list[Segment] = []
        graph = None if self._graphs is None else self._graphs.shape_of(work, len(places))
        if graph is not None:
            shape = graph
        elif self._has_kernels:
            shape = shape_for_kernels(work, len(places))
        else:
            shape, segments = Shape(sum(len(ids) for _, ids in work), 0, 0, len(places)), _segments(work)
        numbers = self._staging.gather(work, places, shape)
        longest = max(row.length + len(ids) for row, ids in work)
        for row, ids in work:
            row.length += len(ids)
        return Step(shape, numbers, len(places), longest, segments, is_graph=graph is not None)

    def run_planned(self, step: Step, drawn: Tensor | None) -> None:
        """A step that was planned elsewhere."""
        self.run(replace(step, numbers=self._staging.copied(step.numbers)), drawn)

    def run(self, step: Step, drawn: Tensor | None) -> Tensor:
        """Logits [step.wanted, vocabulary]."""
        if step.is_graph:
            assert self._graphs is not None
            return self._graphs.run(step, drawn)
        numbers = torch.from_numpy(step.numbers).to(self.device, non_blocking=self.device.type == "cuda")
        logits = self._step(numbers, step.shape, drawn, step.longest, step.segments)
        if logits.shape[0] != step.wanted:
            raise UnsupportedAttentionError("it does not take logits_to_keep")
        return logits

    def _step(
        self, numbers: Tensor, shape: Shape, drawn: Tensor | None, longest: int, segments: Sequence[Segment] = ()
    ) -> Tensor:
        """numbers: as Staging gathers them. segments: for rows that are read one by one."""
        ids, positions, slots, adapters, places, *rows = torch.split(numbers, shape.sizes)
        if self._adapters is not None:
            self._adapters.choose(adapters)
        if drawn is not None:
            ids = torch.where(ids < 0, drawn[(-1 - ids).clamp_min(0)], ids)
        kernels = None if segments else Kernels(longest, *(part.int() for part in rows))
        return self._call(Packed(segments, kernels), ids, positions, slots, places)

    def _call(self, packed: Packed, ids: Tensor, positions: Tensor, slots: Tensor | None, places: Tensor) -> Tensor:
        PASS.now = packed
        output = self._model(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            logits_to_keep=places,
            use_cache=False,
            slots=slots,
        )
        logits: Tensor = output.logits[0]
        return logits

    # -- start ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        ids = check_ids(self.vocabulary)
        expected = self._model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0].float()
        make_plain(self._model)
        self._model.set_attn_implementation(NAME)
        if self._model.config.get_text_config()._attn_implementation != NAME:
            raise UnsupportedAttentionError("it has an attention of its own")
        self._layers = self._find_layers(ids)
        self.hold(4 * CHECK_TOKENS)
        self._has_kernels = self._kernels_fit()
        self._check(ids, expected)
        if self.device.type == "cuda" or (self._model.dtype is torch.bfloat16 and has_bfloat16()):
            self._is_rebuilt = True
            self._rebuild(partial(self._difference, ids, expected, adapter=1))
            self._check(ids, expected)
        elif self._adapters is not None:
            self._adapters.attach(self._model, partial(self._difference, ids, expected, adapter=1))

    def _rebuild(self, run: Callable[[], object]) -> None:
        """Its layers, in place, to be faster. run: as Adapters.attach has it."""
        if self.device.type == "cuda" and not self._is_spread:
            stack(self._model)  # over several, accelerate's hooks are on the layers that a stack would replace
            torch.cuda.empty_cache()
        if self.device.type == "cpu":
            bring_into_order(self._model)
        if self._adapters is not None:
            self._adapters.attach(self._model, run)
        if self._may_be_compiled and not (self._is_spread or self._is_quantized):
            for layer in {one.module for one in self._layers.values()}:
                self._decoder_layer_of(layer).compile(dynamic=True)

    def _check(self, ids: list[int], expected: Tensor) -> None:
        error = self._difference(ids, expected)
        if not error < tolerance_of(self._model):
            raise UnsupportedAttentionError(f"packed and plain logits differ by {error:.2g}")

    def _find_layers(self, ids: list[int]) -> dict[int, Layer]:
        """Of a forward in which no layer has a cache yet."""
        packed = Packed([Segment(0, 0, 0, len(ids))])
        given, positions = torch.tensor([ids, range(len(ids))], device=self.device)
        self._call(packed, given, positions, None, positions[-1:])
        self._check_windows(packed)
        return packed.layers

    def _kernels_fit(self) -> bool:
        """They are for half precision, on a GPU that multiplies it, with keys and values of one size."""
        half = all(layer.dtype in (torch.float16, torch.bfloat16) for layer in self._layers.values())
        small = all(layer.key_size == layer.value_size <= 256 for layer in self._layers.values())
        return self.device.type == "cuda" and half and small and torch.cuda.get_device_capability(self.device) >= (8, 0)

    def _decoder_layer_of(self, attention: torch.nn.Module) -> torch.nn.Module:
        (parent,) = [module for module in self._model.modules() if attention in list(module.children())]
        return parent

    def _difference(self, ids: list[int], expected: Tensor, adapter: int = 0) -> float:
        """Relative error of a prompt's logits, computed in two chunks beside another row."""
        row, other = Row(adapter=adapter), Row()
        for one in (row, other):
            self.cache.reserve(one, CHECK_TOKENS)
        half, rest = ids[: CHECK_TOKENS // 2], ids[CHECK_TOKENS // 2 :]
        got = [self.forward([(other, rest), (row, half)], [0, len(half)]).float()]
        got.append(self.forward([(row, rest), (other, half[:1])], [len(rest), 0]).float())
        for one in (row, other):
            self.cache.release(one)
        return float((torch.cat(got) - expected).norm() / expected.norm())

    def _check_windows(self, packed: Packed) -> None:
        """A prompt as short as the check's would not show a window that never reached the attention."""
        kinds = getattr(self._config, "layer_types", None) or []
        if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
            raise UnsupportedAttentionError(f"it has layers of type {min(unknown)!r}")
        if len(packed.windows) != self._config.num_hidden_layers:
            raise UnsupportedAttentionError("not all of its layers are attention")
        window = getattr(self._config, "sliding_window", None)
        if getattr(self._config, "use_sliding_window", True) is False:
            window = None
        for layer, got in packed.windows.items():
            slides = kinds[layer] == "sliding_attention" if kinds else window is not None
            if got != (window if slides else None):
                raise UnsupportedAttentionError("its sliding window does not reach its attention")


def check_ids(vocabulary: int) -> list[int]:
    """A prompt that a model is checked with."""
    return [1 + 7 * place % (vocabulary - 1) for place in range(CHECK_TOKENS)]


def tolerance_of(model: PreTrainedModel) -> float:
    if is_quantized(model):  # activations are rounded to 8 bits, or to bfloat16
        return HALF_TOLERANCE
    return TOLERANCE.get(model.dtype, HALF_TOLERANCE)


def _places(work: Sequence[Work], wanted: Sequence[int]) -> list[int]:
    """Of the tokens whose logits are wanted, in the packed input."""
    places: list[int] = []
    end = 0
    for (_, ids), last in zip(work, wanted, strict=True):
        end += len(ids)
        places.extend(range(end - last, end))
    return places


def _segments(work: Sequence[Work]) -> list[Segment]:
    segments: list[Segment] = []
    start = 0
    for row, ids in work:
        segments.append(Segment(row.start, row.length, start, start + len(ids)))
        start += len(ids)
    return segments
