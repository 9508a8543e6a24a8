"""Which rows have a prompt's first tokens: an index by hashes of whole blocks, each chained to the one before.

No tensors here: `KeyValueCache` copies what this finds. A hash only names candidates; tokens are compared.
"""

from itertools import takewhile
from operator import eq
from typing import Generic, TypeVar

BLOCK = 16  # tokens; less in common is not worth a copy


class Prefix:
    """A list of ids, and the hashes of its blocks."""

    def __init__(self, ids: list[int], adapter: int = 0) -> None:
        """ids: may grow. adapter: with another one, keys and values of the same ids are others."""
        self.ids = ids
        self.adapter = adapter
        self._hashes: list[int] = []

    def hashes(self) -> list[int]:
        while (end := (len(self._hashes) + 1) * BLOCK) <= len(self.ids):
            before = self._hashes[-1] if self._hashes else self.adapter
            self._hashes.append(hash((before, *self.ids[end - BLOCK : end])))
        return self._hashes

    def cut(self, tokens: int) -> None:
        """All after so many of them."""
        del self.ids[tokens:], self._hashes[tokens // BLOCK :]

    def common(self, other: "Prefix", at_most: int) -> int:
        """Tokens that both begin with."""
        if self.adapter != other.adapter:
            return 0
        return sum(1 for _ in takewhile(bool, map(eq, self.ids[:at_most], other.ids)))


P = TypeVar("P", bound=Prefix)


class PrefixIndex(Generic[P]):
    def __init__(self) -> None:
        self._found: dict[int, dict[P, None]] = {}
        self._named: dict[P, list[int]] = {}  # the hashes by which each is found

    def add(self, prefix: P) -> None:
        """Or what it has grown by."""
        named = self._named.setdefault(prefix, [])
        for name in prefix.hashes()[len(named) :]:
            self._found.setdefault(name, {})[prefix] = None
            named.append(name)

    def remove(self, prefix: P) -> None:
        """Unknown ones are fine."""
        for name in self._named.pop(prefix, []):
            del self._found[name][prefix]
            if not self._found[name]:
                del self._found[name]

    def alike(self, prefix: Prefix) -> list[P]:
        """Those that have most blocks in common with it."""
        best: dict[P, None] = {}
        for name in prefix.hashes():
            if name not in self._found:
                break
            best = self._found[name]
        return list(best)
