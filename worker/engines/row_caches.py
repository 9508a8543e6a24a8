"""What transformers keeps of each row, within a budget of tokens that is known at start."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.engines.extents import Space
from worker.engines.kv_cache import Row, block_of


@dataclass(slots=True)
class Held:
    """Of one row: the ids that its cache has not seen, and the cache, as the model made it."""

    unseen: Tensor
    cache: Any = None


class RowCaches:
    """As KeyValueCache to the scheduler. Nothing lies in its space: the caches grow on their own, and are counted."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        """tokens: that all rows together may have."""
        block = block_of(device)
        self.space = Space(-(-tokens // block) * block, block)
        self.held: dict[Row, Held] = {}

    def reserve(self, row: Row, tokens: int) -> bool:
        """Room for so many tokens of the row in all. False: there is none."""
        before = row.extent
        if before is not None and tokens <= before.size:
            return True
        if self.space.rounded(tokens) > self.space.free + (0 if before is None else before.size):
            return False
        if before is not None:
            self.space.release(before)
        self.space.close_gaps()
        row.extent = self.space.allocate(tokens)
        return True

    def release(self, row: Row) -> None:
        if row.extent is not None:
            self.space.release(row.extent)
        row.extent, row.length = None, 0
        self.held.pop(row, None)
