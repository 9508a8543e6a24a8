"""Keys and values of all sequences: one tensor of each a layer, within a budget that is known at start.

A row's tokens lie together, as torch's attention kernels read them: its extent grows in place, or moves (a copy at
memory speed). Where the space is full nobody is given any, and the scheduler has to make room.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.engines.extents import Extent, Space


@dataclass(frozen=True, slots=True)
class Layer:
    """An attention module, and the shape of what it keeps of each token."""

    module: nn.Module
    kv_heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return self.kv_heads * (self.key_size + self.value_size) * self.dtype.itemsize


class Row:
    """One sequence's place. `length`: tokens that all layers hold, or will when what was launched has run."""

    def __init__(self) -> None:
        self.length = 0
        self.extent: Extent | None = None

    @property
    def start(self) -> int:
        return 0 if self.extent is None else self.extent.start


class KeyValueCache:
    """The first block is nobody's: what fills up a batch is written there."""

    def __init__(self, layers: Mapping[int, Layer], tokens: int, device: torch.device) -> None:
        """tokens: that all rows together may have. device: of a step's numbers; tensors lie where their layer does."""
        self.device = device
        self._block = block_of(device)
        self.space = Space((-(-tokens // self._block) + 1) * self._block, self._block)
        self._tensors: list[Tensor] = []
        self._layers = list(layers.values())
        for layer in layers.values():
            for name, size in (("keys", layer.key_size), ("values", layer.value_size)):
                tensor = _empty(self.space.tokens, layer.kv_heads, size, layer.dtype, layer.device)
                layer.module.register_buffer(name, tensor, persistent=False)
                self._tensors.append(tensor)
        self.space.allocate(self._block)

    def reserve(self, row: Row, tokens: int) -> bool:
        """Room for so many tokens of the row in all, wherever that is. False: there is none."""
        if row.extent is None:
            row.extent = self._allocated(tokens)
            return row.extent is not None
        if tokens <= row.extent.size or self.space.grow(row.extent, tokens):
            return True
        before = row.extent
        if (extent := self._allocated(tokens)) is None:
            return self.space.grow(before, tokens)  # the gaps were closed, and one is behind it perhaps
        self._copy(before.start, extent.start, row.length)
        self.space.release(before)
        row.extent = extent
        return True

    def drop(self) -> None:
        """Gives its memory back; there must be another before the model is called again."""
        for layer in self._layers:
            del layer.module.keys, layer.module.values
        self._tensors.clear()

    def release(self, row: Row) -> None:
        if row.extent is not None:
            self.space.release(row.extent)
        row.extent, row.length = None, 0

    def _allocated(self, tokens: int) -> Extent | None:
        extent = self.space.allocate(tokens)
        if extent is None and self.space.free >= self.space.rounded(tokens):
            for moved, start in self.space.close_gaps():
                self._copy(start, moved.start, moved.size)
            extent = self.space.allocate(tokens)
        return extent

    def _copy(self, source: int, target: int, tokens: int) -> None:
        """Downwards the two may overlap."""
        step = min(tokens, abs(source - target)) or 1
        for at in range(0, tokens, step):
            size = min(step, tokens - at)
            torch._foreach_copy_(
                [tensor[target + at : target + at + size] for tensor in self._tensors],
                [tensor[source + at : source + at + size] for tensor in self._tensors],
            )


def block_of(device: torch.device) -> int:
    """Tokens by which a row's memory grows."""
    return 64 if device.type == "cpu" else 256


def _empty(tokens: int, heads: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[tokens, heads, size]. On a CPU the tokens of each head lie together: there heads are read one by one."""
    if device.type == "cpu":
        return torch.empty((heads, tokens, size), dtype=dtype, device=device).transpose(0, 1)
    return torch.empty((tokens, heads, size), dtype=dtype, device=device)
