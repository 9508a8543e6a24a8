"""A causal language model that computes the tokens of many rows, prompt chunks and single tokens, in one forward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import StartupError
from worker.engines.packed_attention import NAME, Packed, RowCache, Segment, UnsupportedAttentionError

CHECK_TOKENS = 11
# Relative error of the logits. In half precision two correct kernels differ by about 0.02, wrong ones by about 1.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 0.1


class PackedModel:
    def __init__(self, model: PreTrainedModel) -> None:
        """Checks the model against its own plain forward; raises StartupError where this engine would get it wrong."""
        self.device = model.device
        self._model = model
        self._config = model.config.get_text_config()
        self.vocabulary: int = self._config.vocab_size
        self._check()

    @torch.inference_mode()
    def forward(self, work: Sequence[tuple[RowCache, list[int]]], wanted: Sequence[int]) -> Tensor:
        """Computes each row's next tokens, and returns float32 logits [sum(wanted), vocabulary], row after row.

        work: of each row, its cache and the ids that follow what the cache holds. wanted: of how many of its last
        tokens the logits are needed.
        """
        segments, start = [], 0
        for cache, token_ids in work:
            segments.append(Segment(cache, start, start + len(token_ids)))
            start += len(token_ids)
        places = [place for one, last in zip(segments, wanted, strict=True) for place in range(one.end - last, one.end)]
        logits = self._run(Packed(segments), [ids for _, ids in work], places)
        for segment in segments:
            segment.cache.length += segment.end - segment.start
        return logits

    def _run(self, packed: Packed, ids: list[list[int]], wanted: list[int]) -> Tensor:
        positions = [
            position
            for segment in packed.segments
            for position in range(segment.cache.length, segment.cache.length + segment.end - segment.start)
        ]
        output = self._model(
            input_ids=self._tensor([[token_id for row in ids for token_id in row]]),
            position_ids=self._tensor([positions]),
            logits_to_keep=self._tensor(wanted),
            use_cache=False,
            packed=packed,
        )
        logits: Tensor = output.logits[0]
        if logits.shape[0] != len(wanted):
            raise UnsupportedAttentionError("it does not take logits_to_keep")
        return logits.float()

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _check(self) -> None:
        try:
            with torch.inference_mode():
                error = self._difference()
        except Exception as problem:  # foreign code, run in a way that it may not know
            raise self._unsupported(str(problem)) from problem
        if not error < TOLERANCE.get(self._model.dtype, HALF_TOLERANCE):
            raise self._unsupported(f"packed and plain logits differ by {error:.2g}")

    def _unsupported(self, why: str) -> StartupError:
        first_line = why.strip().partition("\n")[0]
        return StartupError(f"the transformers engine does not support {type(self._model).__name__}: {first_line}")

    def _difference(self) -> float:
        """Relative error of a prompt's logits, computed in two chunks beside another row."""
        ids = [1 + 7 * place % (self.vocabulary - 1) for place in range(CHECK_TOKENS)]
        expected = self._model(input_ids=self._tensor([ids]), use_cache=False).logits[0].float()
        self._model.set_attn_implementation(NAME)
        if self._model.config.get_text_config()._attn_implementation != NAME:
            raise UnsupportedAttentionError("it has an attention of its own")
        row, other = RowCache(), RowCache()
        half, rest = ids[: CHECK_TOKENS // 2], ids[CHECK_TOKENS // 2 :]
        packed = Packed([Segment(other, 0, len(rest)), Segment(row, len(rest), len(ids))])
        got = [self._run(packed, [rest, half], list(range(len(rest), len(ids))))]
        self._check_windows(packed)
        other.length, row.length = len(rest), len(half)
        packed = Packed([Segment(row, 0, len(rest)), Segment(other, len(rest), len(rest) + 1)])
        got.append(self._run(packed, [rest, half[:1]], list(range(len(rest)))))
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
