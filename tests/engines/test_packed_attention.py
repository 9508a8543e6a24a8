"""Attention over packed rows equals attention spelled out, number by number."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.engines.packed_attention import (
    GROWTH,
    Packed,
    RowCache,
    Segment,
    UnsupportedAttentionError,
    packed_attention,
)

HEADS, KV_HEADS, SIZE = 6, 2, 8
Row = tuple[Tensor, Tensor, Tensor]


def some_row(length: int, seed: int) -> Row:
    """Queries, keys and values of a whole row, [heads, length, size]."""
    chance = torch.Generator().manual_seed(seed)
    shapes = (HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (torch.randn(heads, length, SIZE, generator=chance) for heads in shapes)
    return q, k, v


def spelled_out(row: Row, window: int | None) -> Tensor:
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


def attend(rows: list[Row], caches: list[RowCache], counts: list[int], window: int | None) -> list[Tensor]:
    """One packed call for the next `counts` tokens of each row."""
    pieces, segments, start = [], [], 0
    for row, cache, count in zip(rows, caches, counts, strict=True):
        pieces.append([part[:, cache.length : cache.length + count] for part in row])
        segments.append(Segment(cache, start, start + count))
        start += count
    query, key, value = (torch.cat(parts, dim=1).unsqueeze(0) for parts in zip(*pieces, strict=True))
    module: Any = SimpleNamespace(layer_idx=0)
    out, _ = packed_attention(module, query, key, value, None, sliding_window=window, packed=Packed(segments))
    for segment in segments:
        segment.cache.length += segment.end - segment.start
    return [out[0, segment.start : segment.end] for segment in segments]


@pytest.mark.parametrize("window", [None, 1, 5, 1000])
def test_chunks_and_single_tokens_of_rows_of_all_lengths(window: int | None) -> None:
    rows = [some_row(length, seed) for seed, length in enumerate((3, 25, GROWTH + 20))]
    caches = [RowCache() for _ in rows]
    got: list[list[Tensor]] = [[] for _ in rows]
    for counts in ([1, 4, GROWTH - 2], [1, 1, 7], [1, 19, 14], [0, 1, 1]):
        live = [place for place, count in enumerate(counts) if count]
        outs = attend(
            [rows[place] for place in live],
            [caches[place] for place in live],
            [counts[place] for place in live],
            window,
        )
        for place, out in zip(live, outs, strict=True):
            got[place].append(out)
    for row, pieces in zip(rows, got, strict=True):
        torch.testing.assert_close(torch.cat(pieces), spelled_out(row, window), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": torch.zeros(1, 1, 1, 1)},
        {"packed": None},
        {"softcap": 30.0},
        {"s_aux": torch.zeros(HEADS)},
        {"is_causal": False},
    ],
)
def test_an_attention_that_this_is_not_is_refused(arguments: dict[str, Any]) -> None:
    query, key, value = (part.unsqueeze(0) for part in some_row(1, 0))
    packed = Packed([Segment(RowCache(), 0, 1)])
    given = {"attention_mask": None, "packed": packed, **arguments}
    module: Any = SimpleNamespace(layer_idx=0)
    with pytest.raises(UnsupportedAttentionError):
        packed_attention(module, query, key, value, **given)


def test_a_row_s_memory_follows_its_length() -> None:
    cache = RowCache()
    attend([some_row(3, 0)], [cache], [3], None)
    assert [layer.shape[2] for layer in cache._layers.values()] == [GROWTH]
