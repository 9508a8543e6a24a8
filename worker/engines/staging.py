"""A step's numbers on their way to the device: gathered in pinned memory, and sent in one transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engines.kv_cache import Row

Work = tuple[Row, Sequence[int]]
BUFFERS = 3  # a transfer is under way while the next is gathered


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a step: tokens, rows that have them, and places of which logits are wanted."""

    tokens: int
    rows: int
    wanted: int

    @property
    def sizes(self) -> list[int]:
        """Of ids, positions, slots, places, and what Flash has: new_starts, key_starts, lengths."""
        return [self.tokens, self.tokens, self.tokens, self.wanted, self.rows + 1, self.rows + 1, self.rows]


class Staging:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [torch.empty(0, dtype=torch.int64)] * BUFFERS
        self._turn = 0
        if device.type == "cuda":
            self._done = [torch.cuda.Event() for _ in range(BUFFERS)]  # type: ignore[no-untyped-call]

    def gather(self, work: Sequence[Work], places: Sequence[int], shape: Shape) -> Tensor:
        """int64 [sum(shape.sizes)], on the host; what is more than the work's own is written where nobody reads."""
        buffer = self._buffer(sum(shape.sizes))
        ids, positions, slots, wanted, new_starts, key_starts, lengths = (
            part.numpy() for part in torch.split(buffer, shape.sizes)
        )
        counts = np.array([len(row_ids) for _, row_ids in work], dtype=np.int64)
        past = np.array([row.length for row, _ in work], dtype=np.int64)
        held = np.array([row.start for row, _ in work], dtype=np.int64)
        ends = counts.cumsum()
        tokens, rows = int(ends[-1]), len(work)
        _fill(ids, np.fromiter((one for _, row_ids in work for one in row_ids), dtype=np.int64, count=tokens))
        _fill(positions, np.arange(tokens) + np.repeat(past - ends + counts, counts))
        _fill(slots, positions[:tokens] + np.repeat(held, counts))
        _fill(wanted, np.asarray(places, dtype=np.int64))
        new_starts[0], new_starts[1 : rows + 1], new_starts[rows + 1 :] = 0, ends, tokens
        _fill(key_starts, held)
        lengths[:rows], lengths[rows:] = past + counts, 1
        return buffer

    def _buffer(self, size: int) -> Tensor:
        if self._device.type != "cuda":
            return torch.empty(size, dtype=torch.int64)
        self._done[self._turn].record()  # when the step of the last one has run
        self._turn = (self._turn + 1) % BUFFERS
        self._done[self._turn].synchronize()  # chunks of a long prompt are launched one after the other, unheard
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = torch.empty(size * 2, dtype=torch.int64, pin_memory=True)
        return self._buffers[self._turn][:size]


def _fill(out: NDArray[np.int64], values: NDArray[np.int64]) -> None:
    out[: len(values)], out[len(values) :] = values, 0
