"""What transformers keeps of each row, within a budget of tokens that is known at start."""

from collections import Counter
from collections.abc import Iterator
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

    def sizes(self) -> Counter[torch.device]:
        """Bytes on each device."""
        sizes: Counter[torch.device] = Counter()
        for tensor in _tensors([self.unseen, self.cache], set()):
            sizes[tensor.device] += tensor.nbytes
        return sizes


class RowCaches:
    """As KeyValueCache to the scheduler. Nothing lies in its space: the caches grow on their own, and are counted."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        """tokens: that all rows together may have."""
        self._block = block_of(device)
        self._tokens = -(-tokens // self._block) * self._block
        self.clear()

    def clear(self) -> None:
        """Nobody has anything."""
        self.space = Space(self._tokens, self._block)
        self.held: dict[Row, Held] = {}

    def begin(self, row: Row, *, share: bool) -> bool:
        """Room for a row's ids and a token more. Nothing is shared: a state is of all that was before it."""
        return self.reserve(row, len(row.ids) + 1)

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

    def keep(self, row: Row) -> None:
        """Nobody computes it any more."""
        self.release(row)


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """All within a cache, whatever its class."""
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner, seen)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value), seen)
