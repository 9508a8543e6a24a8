"""A step's numbers on their way to the device: gathered in pinned memory, and sent in one transfer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from worker.engines.kv_cache import Row

Work = tuple[Row, Sequence[int]]
BUFFERS = 3  # a transfer is under way while the next is gathered


@dataclass(slots=True)
class Staged:
    """int64 [tokens]: ids, positions, slots; int64 [wanted]: places; int32: as in Flash."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    places: Tensor
    new_starts: Tensor
    key_starts: Tensor
    lengths: Tensor


class Staging:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pins = device.type == "cuda"
        self._buffers = [torch.empty(0, dtype=torch.int64)] * BUFFERS
        self._turns = count()

    def put(self, work: Sequence[Work], places: Sequence[int]) -> Staged:
        counts = np.array([len(ids) for _, ids in work], dtype=np.int64)
        past = np.array([row.length for row, _ in work], dtype=np.int64)
        held = np.array([row.start for row, _ in work], dtype=np.int64)
        ends = counts.cumsum()
        tokens = int(ends[-1])
        positions = np.arange(tokens) + np.repeat(past - ends + counts, counts)
        ids = np.fromiter((one for _, row_ids in work for one in row_ids), dtype=np.int64, count=tokens)
        parts = (
            ids,
            positions,
            positions + np.repeat(held, counts),
            np.asarray(places, dtype=np.int64),
            np.concatenate(([0], ends)),
            np.append(held, 0),
            past + counts,
        )
        sent = torch.split(self._sent(np.concatenate(parts)), [len(part) for part in parts])
        return Staged(*sent[:4], *(part.int() for part in sent[4:]))

    def _sent(self, numbers: np.ndarray) -> Tensor:
        if not self._pins:
            return torch.from_numpy(numbers).to(self._device)
        turn = next(self._turns) % BUFFERS
        if len(self._buffers[turn]) < len(numbers):
            self._buffers[turn] = torch.empty(len(numbers) * 2, dtype=torch.int64, pin_memory=True)
        buffer = self._buffers[turn][: len(numbers)]
        buffer.numpy()[:] = numbers
        return buffer.to(self._device, non_blocking=True)
