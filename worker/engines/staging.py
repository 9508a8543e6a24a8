"""A step's numbers on their way to the device: gathered in pinned memory, and sent in one transfer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from worker.engines.kv_cache import Row

Work = tuple[Row, Sequence[int]]
BUFFERS = 3  # a transfer is under way while the next is gathered
PIECE = 128  # tokens of a prompt that are a tile of the kernel for them


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
        """Of ids, positions, slots, adapters, places; starts and lengths of singles; and of pieces, new_starts, counts,
        key_starts and lengths."""
        return [*[self.tokens] * 4, self.wanted, *[self.singles] * 2, *[self.pieces] * 4]


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens [start, end) of the packed input: the next ones of one row, whose keys begin at `held` and which has
    `past` of them already."""

    held: int
    past: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Step:
    """All that a device needs to compute the next tokens of some rows, wherever that is.

    numbers: int64 [sum(shape.sizes)], on the host, as Staging gathers them. wanted: rows of logits, of which a graph
    makes more. longest: of the rows. segments: where they are read one by one.
    """

    shape: Shape
    numbers: NDArray[np.int64]
    wanted: int
    longest: int
    segments: Sequence[Segment]
    is_graph: bool


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

    def gather(self, work: Sequence[Work], places: Sequence[int], shape: Shape) -> NDArray[np.int64]:
        """int64 [sum(shape.sizes)], on the host; what is more than the work's own is written where nobody reads."""
        buffer = self._buffer(sum(shape.sizes))
        ids, positions, slots, adapters, wanted, *rows = np.split(buffer, list(accumulate(shape.sizes))[:-1])
        counts = np.array([len(row_ids) for _, row_ids in work], dtype=np.int64)
        past = np.array([row.length for row, _ in work], dtype=np.int64)
        held = np.array([row.start for row, _ in work], dtype=np.int64)
        ends = counts.cumsum()
        tokens = int(ends[-1])
        _fill(ids, np.fromiter((one for _, row_ids in work for one in row_ids), dtype=np.int64, count=tokens))
        _fill(positions, np.arange(tokens) + np.repeat(past - ends + counts, counts))
        _fill(slots, positions[:tokens] + np.repeat(held, counts))
        _fill(adapters, np.repeat(np.array([row.adapter for row, _ in work], dtype=np.int64), counts))
        _fill(wanted, np.asarray(places, dtype=np.int64))
        if shape.singles or shape.pieces:
            _fill_rows(rows, counts, past, held)
        return buffer

    def copied(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of what was gathered elsewhere, in memory from which this device takes it without being waited for."""
        buffer = self._buffer(len(numbers))
        buffer[:] = numbers
        return buffer

    def _buffer(self, size: int) -> NDArray[np.int64]:
        if self._device.type != "cuda":
            return np.empty(size, dtype=np.int64)
        self._done[self._turn].record()  # when the step of the last one has run
        self._turn = (self._turn + 1) % BUFFERS
        self._done[self._turn].synchronize()  # chunks of a long prompt are launched one after the other, unheard
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = torch.empty(size * 2, dtype=torch.int64, pin_memory=True)
        return self._buffers[self._turn].numpy()[:size]


def _fill(out: NDArray[np.int64], values: NDArray[np.int64]) -> None:
    out[: len(values)], out[len(values) :] = values, 0


def _fill_rows(
    out: Sequence[NDArray[np.int64]], counts: NDArray[np.int64], past: NDArray[np.int64], held: NDArray[np.int64]
) -> None:
    starts, lengths, *of_pieces = out
    singles = singles_of(counts.tolist())
    _fill(starts, held[:singles])
    _fill(lengths, past[:singles] + 1)
    if singles == len(counts):
        for part in of_pieces:
            part[:] = 0
        return
    counts, past, held = counts[singles:], past[singles:], held[singles:]
    pieces = -(-counts // PIECE)
    begins = PIECE * (np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces))  # each within its row
    sizes = np.minimum(np.repeat(counts, pieces) - begins, PIECE)
    seen = np.repeat(past, pieces) + begins + sizes
    order = np.argsort(-seen)  # what takes longest begins first
    new_starts = singles + np.repeat(counts.cumsum() - counts, pieces) + begins
    for part, numbers in zip(of_pieces, (new_starts, sizes, np.repeat(held, pieces), seen), strict=True):
        _fill(part, numbers[order])
