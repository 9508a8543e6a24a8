"""Attention over packed rows equals attention spelled out, number by number."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.engines.kv_cache import KeyValueCache, Layer, Row
from worker.engines.packed_attention import PASS, Packed, UnsupportedAttentionError, packed_attention
from worker.engines.staging import Segment

HEADS, KV_HEADS, SIZE = 6, 2, 8
Parts = tuple[Tensor, Tensor, Tensor]


def some_row(length: int, seed: int) -> Parts:
    """Queries, keys and values of a whole row, [heads, length, size]."""
    chance = torch.Generator().manual_seed(seed)
    shapes = (HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (torch.randn(heads, length, SIZE, generator=chance) for heads in shapes)
    return q, k, v


def spelled_out(row: Parts, window: int | None) -> Tensor:
    """[length, heads, size]"""
    queries, keys, values = row
    out = torch.empty(queries.shape[1], HEADS, SIZE)
    for at in range(queries.shape[1]):
        first = 0 if window is None else max(0, at + 1 - window)
        for head in range(HEADS):
            group = head * KV_HEADS // HEADS
            scores = keys[group, first : at + 1] @ queries[head, at] / math.sqrt(SIZE)
            out[at, head] = scores.softmax(0) @ values[group, first : at + 1]
    return out


class Layers:
    """One of them, with its cache."""

    def __init__(self, tokens: int) -> None:
        self.module: Any = torch.nn.Module()
        self.module.layer_idx = 0
        layer = Layer(self.module, KV_HEADS, SIZE, SIZE, torch.float32, torch.device("cpu"))
        self.cache = KeyValueCache({0: layer}, tokens, torch.device("cpu"))

    def attend(self, whole: list[Parts], rows: list[Row], counts: list[int], window: int | None) -> list[Tensor]:
        """One packed call for the next `counts` tokens of each row."""
        pieces, segments, slots, start = [], [], [], 0
        for row, count in zip(rows, counts, strict=True):
            assert self.cache.reserve(row, row.length + count)
        for parts, row, count in zip(whole, rows, counts, strict=True):
            pieces.append([part[:, row.length : row.length + count] for part in parts])
            segments.append(Segment(row.start, row.length, start, start + count))
            slots += range(row.start + row.length, row.start + row.length + count)
            start += count
        query, key, value = (torch.cat(parts, dim=1).unsqueeze(0) for parts in zip(*pieces, strict=True))
        PASS.now = Packed(segments)
        out, _ = packed_attention(
            self.module, query, key, value, None, sliding_window=window, slots=torch.tensor(slots)
        )
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        return [out[0, segment.start : segment.end] for segment in segments]


@pytest.mark.parametrize("window", [None, 1, 5, 1000])
def test_chunks_and_single_tokens_of_rows_of_all_lengths(window: int | None) -> None:
    """They grow, move, and close the gaps that others left, on the way."""
    whole = [some_row(length, seed) for seed, length in enumerate((3, 25, 150))]
    rows = [Row() for _ in whole]
    layers = Layers(640)
    other = Row()
    got: list[list[Tensor]] = [[] for _ in rows]
    for counts in ([1, 4, 60], [1, 1, 7], [0, 0, 50], [1, 19, 30], [0, 1, 3]):
        live = [place for place, count in enumerate(counts) if count]
        outs = layers.attend(
            [whole[place] for place in live],
            [rows[place] for place in live],
            [counts[place] for place in live],
            window,
        )
        for place, out in zip(live, outs, strict=True):
            got[place].append(out)
        if other.extent is None:
            assert layers.cache.reserve(other, 64)
        else:
            layers.cache.release(other)
    for parts, pieces in zip(whole, got, strict=True):
        torch.testing.assert_close(torch.cat(pieces), spelled_out(parts, window), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": torch.zeros(1, 1, 1, 1)},
        {"softcap": 30.0},
        {"s_aux": torch.zeros(HEADS)},
        {"is_causal": False},
    ],
)
def test_an_attention_that_this_is_not_is_refused(arguments: dict[str, Any]) -> None:
    query, key, value = (part.unsqueeze(0) for part in some_row(1, 0))
    PASS.now = Packed([Segment(0, 0, 0, 1)])
    module: Any = SimpleNamespace(layer_idx=0)
    with pytest.raises(UnsupportedAttentionError):
        packed_attention(module, query, key, value, **{"attention_mask": None, **arguments})


def test_a_row_that_finds_no_room_stays_as_it_is() -> None:
    cache = Layers(128).cache
    first, second = Row(), Row()
    assert cache.reserve(first, 60)
    assert cache.reserve(second, 60)
    assert not cache.reserve(first, 65)
    assert first.extent is not None
    assert first.extent.size == 64
    cache.release(second)
    assert cache.reserve(first, 128)
    assert not cache.reserve(second, 1)
    cache.release(first)
    assert cache.space.free == 128
