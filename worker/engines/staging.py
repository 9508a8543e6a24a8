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
PIECE = 128  # tokens of a prompt that torch's flash kernel takes as a row of their own: its tile


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a step: tokens, rows at its beginning that have one each, pieces of the other rows, and places of which logits
    are wanted. Without singles and pieces there is nothing in it for kernels."""

    tokens: int
    singles: int
    pieces: int
    wanted: int

    @property
    def sizes(self) -> list[int]:
        """Of ids, positions, slots, places; starts and lengths of singles; and of pieces, with all singles as the first
        and empty one, new_starts, key_starts and lengths."""
        pieces = [self.pieces + 2, self.pieces + 2, self.pieces + 1] if self.pieces else [0, 0, 0]
        return [self.tokens, self.tokens, self.tokens, self.wanted, self.singles, self.singles, *pieces]


def shape_for_kernels(work: Sequence[Work], wanted: int) -> Shape:
    counts = [len(row_ids) for _, row_ids in work]
    singles = singles_of(counts)
    return Shape(sum(counts), singles, sum(-(-count // PIECE) for count in counts[singles:]), wanted)


def singles_of(counts: Sequence[int]) -> int:
    return next((place for place, count in enumerate(counts) if count != 1), len(counts))


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
        ids, positions, slots, wanted, *rows = (part.numpy() for part in torch.split(buffer, shape.sizes))
        counts = np.array([len(row_ids) for _, row_ids in work], dtype=np.int64)
        past = np.array([row.length for row, _ in work], dtype=np.int64)
        held = np.array([row.start for row, _ in work], dtype=np.int64)
        ends = counts.cumsum()
        tokens = int(ends[-1])
        _fill(ids, np.fromiter((one for _, row_ids in work for one in row_ids), dtype=np.int64, count=tokens))
        _fill(positions, np.arange(tokens) + np.repeat(past - ends + counts, counts))
        _fill(slots, positions[:tokens] + np.repeat(held, counts))
        _fill(wanted, np.asarray(places, dtype=np.int64))
        if shape.singles or shape.pieces:
            _fill_rows(rows, counts, past, held)
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


def _fill_rows(
    out: Sequence[NDArray[np.int64]], counts: NDArray[np.int64], past: NDArray[np.int64], held: NDArray[np.int64]
) -> None:
    starts, lengths, new_starts, key_starts, piece_lengths = out
    singles = singles_of(counts.tolist())
    _fill(starts, held[:singles])
    _fill(lengths, past[:singles] + 1)
    if not len(new_starts):
        return
    counts, past, held = counts[singles:], past[singles:], held[singles:]
    pieces = -(-counts // PIECE)
    number = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)  # of each within its row
    ends = np.minimum((number + 1) * PIECE, np.repeat(counts, pieces))
    new_starts[0], new_starts[1] = 0, singles
    _fill(new_starts[2:], np.repeat(counts.cumsum() - counts, pieces) + ends + singles)
    new_starts[len(ends) + 2 :] = singles + counts.sum()
    key_starts[0], piece_lengths[0] = 0, 0
    _fill(key_starts[1:], np.repeat(held, pieces))
    _fill(piece_lengths[1:], np.repeat(past, pieces) + ends)
