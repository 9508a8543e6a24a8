"""Keys and values of all sequences: one tensor of each a layer, within a budget that is known at start.

A row's tokens lie together, as torch's attention kernels read them: its extent grows in place, or moves (a copy at
memory speed). What a sequence leaves behind stays for others that begin with the same tokens, until its memory is
needed. Where the space is full nobody is given any, and the scheduler has to make room.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.engines.extents import Extent, Space
from worker.engines.prefixes import BLOCK, Prefix, PrefixIndex

WORTH_MOVING = 2  # times the room that is needed: where so much is free in pieces, they are joined


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


class Row(Prefix):
    """One sequence's place, and its ids. `length`: tokens that all layers hold, or will when what was launched has
    run."""

    def __init__(self, ids: list[int] | None = None, adapter: int = 0) -> None:
        super().__init__([] if ids is None else ids, adapter)
        self.length = 0
        self.extent: Extent | None = None

    @property
    def start(self) -> int:
        return 0 if self.extent is None else self.extent.start


Moved = Callable[[int, int, int], None]


class KeyValueCache:
    """The first block is nobody's: what fills up a batch is written there."""

    def __init__(
        self, layers: Mapping[int, Layer], tokens: int, device: torch.device, moved: Moved | None = None
    ) -> None:
        """tokens: that all rows together may have. device: of a step's numbers; tensors lie where their layer does.
        moved: is told of what is copied, before it is: as `copy`."""
        self._moved = moved
        self._block = block_of(device)
        self._tokens = (-(-tokens // self._block) + 1) * self._block
        self._tensors: list[Tensor] = []
        self._layers = list(layers.values())
        for layer in layers.values():
            for name, size in (("keys", layer.key_size), ("values", layer.value_size)):
                tensor = _empty(self._tokens, layer.kv_heads, size, layer.dtype, layer.device)
                layer.module.register_buffer(name, tensor, persistent=False)
                self._tensors.append(tensor)
        self.clear()

    def clear(self) -> None:
        """Nobody has anything."""
        self.space = Space(self._tokens, self._block)
        self.space.allocate(self._block)
        self._prefixes = PrefixIndex[Row]()
        self._idle: dict[Row, bool] = {}  # those that nobody computes, the one that was of use last at the end

    def begin(self, row: Row, *, share: bool) -> bool:
        """Room for a row's ids and a token more, with what others hold of them; of the last id nothing is held. False:
        there is no room, or what it shares with another row is being computed. share: or it takes nothing, and gives
        nothing before it has ended."""
        if not share:
            return self.reserve(row, len(row.ids) + 1)
        holder, common = self._holder(row)
        if holder is not None and holder.length < common:
            return False
        is_idle = holder is not None and self._idle.pop(holder, False)  # so that it is not what makes room
        if holder is not None and is_idle and common == holder.length:
            self._take_over(row, holder, common)
        has_room = self.reserve(row, len(row.ids) + 1)
        if holder is not None and holder.extent is not None:
            if has_room:
                self._copy(holder.start, row.start, common)
                row.length = common
                if is_idle:
                    self._idle[holder] = True
            elif is_idle:
                self._take_over(row, holder, common)
                has_room = self.reserve(row, len(row.ids) + 1)
        if has_room:
            self._prefixes.add(row)
        else:
            self.release(row)
        return has_room

    def _take_over(self, row: Row, holder: Row, tokens: int) -> None:
        row.extent, row.length, holder.extent = holder.extent, tokens, None
        self._prefixes.remove(holder)

    def _holder(self, row: Row) -> tuple[Row | None, int]:
        """Who has most of a row's tokens, and how many; more than it holds where they are being computed. In whole
        blocks, or all of them: by single ones, guesses at what others asked would be told that they are right."""
        alike = self._prefixes.alike(row)
        if not alike:
            return None, 0
        holder = max(alike, key=lambda one: one.length)
        common = holder.common(row, len(row.ids) - 1)
        if common < holder.length or holder not in self._idle:
            common = common // BLOCK * BLOCK
        return (holder, common) if common else (None, 0)

    def reserve(self, row: Row, tokens: int) -> bool:
        """Room for so many tokens of the row in all, wherever that is. False: there is none."""
        if row.extent is None:
            row.extent = self._allocated(tokens)
            return row.extent is not None
        before = row.extent
        if tokens <= before.size or self.space.grow(before, tokens):
            return True
        if (extent := self._allocated(tokens)) is not None:
            self._copy(before.start, extent.start, row.length)
            self.space.release(before)
            row.extent = extent
            return True
        if self.space.free < self.space.rounded(tokens) - before.size:
            return False
        self._close_gaps(before)
        return self.space.grow(before, tokens)

    def drop(self) -> None:
        """Gives its memory back; there must be another before the model is called again."""
        for layer in self._layers:
            for name in ("keys", "values"):  # not all, where there was no room for them
                layer.module._buffers.pop(name, None)
        self._tensors.clear()

    def release(self, row: Row) -> None:
        """Nothing of it is held any more."""
        self._prefixes.remove(row)
        self._idle.pop(row, None)
        if row.extent is not None:
            self.space.release(row.extent)
        row.extent, row.length = None, 0

    def keep(self, row: Row) -> None:
        """Nobody computes it any more. What it holds stays until its memory is needed."""
        row.length = min(row.length, len(row.ids))  # a token more may have been launched, and was never known
        if row.length < BLOCK:
            self.release(row)
            return
        self._prefixes.remove(row)
        row.cut(row.length)
        self._prefixes.add(row)
        self._idle[row] = True

    def _allocated(self, tokens: int) -> Extent | None:
        extent, size = self.space.allocate(tokens), self.space.rounded(tokens)
        if extent is not None:
            return extent
        while self._idle and self.space.free < WORTH_MOVING * size:
            self.release(next(iter(self._idle)))
        extent = self.space.allocate(tokens)
        if extent is None and self.space.free >= size:
            self._close_gaps()
            extent = self.space.allocate(tokens)
        return extent

    def _close_gaps(self, behind: Extent | None = None) -> None:
        for moved, start in self.space.close_gaps(behind):
            self._copy(start, moved.start, moved.size)

    def _copy(self, source: int, target: int, tokens: int) -> None:
        if self._moved is not None:
            self._moved(source, target, tokens)
        self.copy(source, target, tokens)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Keys and values of so many tokens, wherever they begin. The two places may overlap."""
        step = min(tokens, abs(source - target)) or 1
        parts = range(0, tokens, step)
        for at in parts if target < source else reversed(parts):
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
