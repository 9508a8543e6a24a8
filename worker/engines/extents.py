"""Which tokens of the cache belong to whom: contiguous extents of one space, as attention kernels read them.

No tensors here: `KeyValueCache` moves what the extents say.
"""

import bisect
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Extent:
    """The tokens [start, start + size) of the space."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


class Space:
    """Best fit among the gaps. Sizes are multiples of `block` tokens, so that gaps are worth something."""

    def __init__(self, tokens: int, block: int) -> None:
        self.block = block
        self.tokens = tokens // block * block
        self.free = self.tokens
        self._taken: list[Extent] = []  # by their starts

    def rounded(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block

    def allocate(self, tokens: int) -> Extent | None:
        """None where no gap is large enough, though all of them together may be."""
        size = self.rounded(tokens)
        fitting = [(length, start) for start, length in self._gaps() if length >= size]
        if not fitting:
            return None
        extent = Extent(min(fitting)[1], size)
        self.free -= size
        bisect.insort(self._taken, extent, key=lambda one: one.start)
        return extent

    def release(self, extent: Extent) -> None:
        del self._taken[self._place(extent)]
        self.free += extent.size

    def grow(self, extent: Extent, tokens: int) -> bool:
        """In place, to at least so many tokens."""
        size, following = self.rounded(tokens), self._place(extent) + 1
        limit = self._taken[following].start if following < len(self._taken) else self.tokens
        if extent.start + size > limit:
            return False
        if size > extent.size:
            self.free -= size - extent.size
            extent.size = size
        return True

    def close_gaps(self, behind: Extent | None = None) -> list[tuple[Extent, int]]:
        """All that is free comes to lie behind this extent, or at the end. Each that moved, with where it was, in the
        order in which they can be copied."""
        before, moved, end = len(self._taken) if behind is None else self._place(behind) + 1, [], 0
        for extent in self._taken[:before]:
            if extent.start != end:
                moved.append((extent, extent.start))
                extent.start = end
            end = extent.end
        start = self.tokens
        for extent in reversed(self._taken[before:]):
            if extent.end != start:
                moved.append((extent, extent.start))
                extent.start = start - extent.size
            start = extent.start
        return moved

    def _gaps(self) -> list[tuple[int, int]]:
        """(start, length) of each."""
        ends = [0, *(extent.end for extent in self._taken)]
        starts = [*(extent.start for extent in self._taken), self.tokens]
        return [(end, start - end) for end, start in zip(ends, starts, strict=True) if start > end]

    def _place(self, extent: Extent) -> int:
        place = bisect.bisect_left(self._taken, extent.start, key=lambda one: one.start)
        assert self._taken[place] is extent
        return place
