"""Attention over what the cache holds of each row, as Triton kernels: one for single new tokens, one for prompts.

Of single tokens a tile is the heads that share keys, which are so read once, at the speed of the memory; where rows are
few, each is split among several programs ("Flash-Decoding", Dao et al., 2023). torch's flash kernel gives each row a
tile of 128 queries, of which such a group fills a few, and copies queries and results to form it. Of prompts a tile is
PIECE tokens of one head ("FlashAttention-2", Dao, 2023), and none is empty, as most of torch's are where prompts are of
different lengths.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engines.staging import PIECE

NUMBERS = 64 * 128  # of keys, and of values, that a program reads at once: more would not fit into smaller GPUs
SMALLEST = 16  # tiles that tensor cores multiply
MOST_SPLITS = 32
PROGRAMS_PER_PROCESSOR = 2
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    queries,
    keys,
    values,
    starts,
    lengths,
    out,
    partial,
    logsums,
    scale,
    window,
    query_row,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, key head, split): scores in powers of 2, softmax online."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1) * GROUP
    length = tl.load(lengths + row)
    if length == 0:
        return
    start = tl.load(starts + row).to(tl.int64)
    first = tl.maximum(length - window, 0)
    share = tl.cdiv(tl.cdiv(length - first, SPLITS), BLOCK) * BLOCK
    begin = first + split * share
    end = tl.minimum(begin + share, length)

    member, place, at = tl.arange(0, TILE), tl.arange(0, PADDED), tl.arange(0, BLOCK)
    is_member, is_place = member < GROUP, place < SIZE
    in_tile = is_member[:, None] & is_place[None, :]
    own = head * GROUP + member
    query = tl.load(queries + row * query_row + own[:, None] * query_head + place[None, :], mask=in_tile, other=0.0)
    best = tl.full([TILE], -float("inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, PADDED], tl.float32)
    for token in range(begin, end, BLOCK):
        seen = token + at < end
        held = start + token + at
        key = tl.load(
            keys + held[None, :] * key_token + head * key_head + place[:, None],
            mask=seen[None, :] & is_place[:, None],
            other=0.0,
        )
        score = tl.where(seen[None, :], tl.dot(query, key) * scale, -float("inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        fading = tl.exp2(best - higher)
        value = tl.load(
            values + held[:, None] * value_token + head * value_head + place[None, :],
            mask=seen[:, None] & is_place[None, :],
            other=0.0,
        )
        total = total * fading + tl.sum(weight, 1)
        sums = tl.dot(weight.to(value.dtype), value, sums * fading[:, None])
        best = higher
    if SPLITS == 1:
        result = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + (row * heads + own[:, None]) * SIZE + place[None, :], result, mask=in_tile)
    else:
        whose = (row * heads + own) * SPLITS + split
        tl.store(partial + whose[:, None] * SIZE + place[None, :], sums / total[:, None], mask=in_tile)
        tl.store(logsums + whose, tl.where(begin < end, best + tl.log2(total), -float("inf")), mask=is_member)


@triton.jit
def _combine(
    partial, logsums, lengths, out, HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr
):
    """Program (row and head): the parts by their weight. Those that had no key hold no numbers."""
    whose = tl.program_id(0)
    if tl.load(lengths + whose // HEADS) == 0:
        return
    split, place = tl.arange(0, SPLITS), tl.arange(0, PADDED)
    logsum = tl.load(logsums + whose * SPLITS + split)
    weight = tl.exp2(logsum - tl.max(logsum, 0))
    part = tl.load(
        partial + (whose * SPLITS + split)[:, None] * SIZE + place[None, :],
        mask=(weight > 0)[:, None] & (place < SIZE)[None, :],
        other=0.0,
    )
    result = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + whose * SIZE + place, result.to(out.dtype.element_ty), mask=place < SIZE)


@triton.jit
def _attend_piece(
    queries,
    keys,
    values,
    new_starts,
    counts,
    key_starts,
    lengths,
    out,
    scale,
    window,
    query_row,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (head, piece, tile of the piece): its tokens see the row's keys up to their own."""
    head, piece, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(new_starts + piece) + tile * TILE
    count = tl.load(counts + piece) - tile * TILE
    if count <= 0:
        return
    length = tl.load(lengths + piece)  # that the last token of the piece sees
    past = length - count  # that all tokens of the tile see, and its first one too
    end = tl.minimum(past + TILE, length)
    start = tl.load(key_starts + piece).to(tl.int64)
    new, place, at = tl.arange(0, TILE), tl.arange(0, PADDED), tl.arange(0, BLOCK)
    in_tile = (new < count)[:, None] & (place < SIZE)[None, :]
    query = tl.load(
        queries + (first + new)[:, None] * query_row + head * query_head + place[None, :], mask=in_tile, other=0.0
    )
    keys += start * key_token + (head // GROUP) * key_head
    values += start * value_token + (head // GROUP) * value_head
    best = tl.full([TILE], -float("inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, PADDED], tl.float32)
    whole = past // BLOCK * BLOCK  # blocks without a key that some token does not see
    begin = 0
    if WINDOWED:
        begin = tl.maximum(past + 1 - window, 0) // BLOCK * BLOCK
        whole = begin
    for token in range(begin, whole, BLOCK):
        key = tl.load(
            keys + (token + at)[None, :] * key_token + place[:, None], mask=(place < SIZE)[:, None], other=0.0
        )
        score = tl.dot(query, key) * scale
        higher = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        fading = tl.exp2(best - higher)
        value = tl.load(
            values + (token + at)[:, None] * value_token + place[None, :], mask=(place < SIZE)[None, :], other=0.0
        )
        total = total * fading + tl.sum(weight, 1)
        sums = tl.dot(weight.to(value.dtype), value, sums * fading[:, None])
        best = higher
    for token in range(whole, end, BLOCK):
        inside = token + at < end
        key = tl.load(
            keys + (token + at)[None, :] * key_token + place[:, None],
            mask=inside[None, :] & (place < SIZE)[:, None],
            other=0.0,
        )
        seen = (token + at)[None, :] <= past + new[:, None]
        if WINDOWED:
            seen = seen & ((token + at)[None, :] > past + new[:, None] - window)
        score = tl.where(seen, tl.dot(query, key) * scale, -float("inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)  # a window may begin in a later block
        weight = tl.exp2(score - shift[:, None])
        fading = tl.exp2(best - shift)
        value = tl.load(
            values + (token + at)[:, None] * value_token + place[None, :],
            mask=inside[:, None] & (place < SIZE)[None, :],
            other=0.0,
        )
        total = total * fading + tl.sum(weight, 1)
        sums = tl.dot(weight.to(value.dtype), value, sums * fading[:, None])
        best = higher
    result = (sums / total[:, None]).to(out.dtype.element_ty)
    heads = tl.num_programs(0)
    tl.store(out + ((first + new)[:, None] * heads + head) * SIZE + place[None, :], result, mask=in_tile)


def attend_pieces(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    new_starts: Tensor,
    counts: Tensor,
    key_starts: Tensor,
    lengths: Tensor,
    scaling: float | None,
    window: int | None,
    out: Tensor,
) -> None:
    """Of pieces of prompts, as attend_to_cache of single tokens; those of 0 tokens are none. All int32 [pieces].
    new_starts, counts: of a piece's tokens, PIECE at most. key_starts, lengths: of its row in the cache, up to the last
    token of the piece."""
    heads, _, size = query.shape
    padded = max(SMALLEST, triton.next_power_of_2(size))
    is_large = padded > 128  # and would not fit either
    tile = PIECE // 2 if is_large else PIECE
    with torch.cuda.device(query.device):
        _attend_piece[heads, len(lengths), PIECE // tile](
            query,
            keys,
            values,
            new_starts,
            counts,
            key_starts,
            lengths,
            out,
            (size**-0.5 if scaling is None else scaling) * LOG2_E,
            0 if window is None else window,
            query.stride(1),
            query.stride(0),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            GROUP=heads // keys.shape[1],
            TILE=tile,
            SIZE=size,
            PADDED=padded,
            WINDOWED=window is not None,
            BLOCK=_block(padded),
            num_warps=8,
            num_stages=2 if is_large else 3,
        )


def attend_to_cache(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    lengths: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
    out: Tensor,
) -> None:
    """query [heads, tokens, size], keys and values [tokens of the cache, kv_heads, size] of one size -> the first rows
    of out [tokens, heads, size]. starts, lengths: int32 [rows], of each row in the cache, the new token included; rows
    of length 0 are none. longest: the most that a length may be."""
    heads, _, size = query.shape
    rows = len(starts)
    kv_heads = keys.shape[1]
    group, padded = heads // kv_heads, max(SMALLEST, triton.next_power_of_2(size))
    splits = _splits(rows * kv_heads, -(-longest // _block(padded)), query.device)
    parts = (rows * heads, splits) if splits > 1 else (0, 0)
    partial = torch.empty((*parts, size), dtype=torch.float32, device=query.device)
    logsums = torch.empty(parts, dtype=torch.float32, device=query.device)
    with torch.cuda.device(query.device):  # of several, Triton would take the current one
        _attend[rows, kv_heads, splits](
            query,
            keys,
            values,
            starts,
            lengths,
            out,
            partial,
            logsums,
            (size**-0.5 if scaling is None else scaling) * LOG2_E,
            longest if window is None else window,
            query.stride(1),
            query.stride(0),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            GROUP=group,
            TILE=max(SMALLEST, triton.next_power_of_2(group)),
            SIZE=size,
            PADDED=padded,
            SPLITS=splits,
            BLOCK=_block(padded),
            num_warps=4,
            num_stages=3,
        )
        if splits > 1:
            _combine[(rows * heads,)](
                partial, logsums, lengths, out, HEADS=heads, SIZE=size, PADDED=padded, SPLITS=splits, num_warps=2
            )


def _block(size: int) -> int:
    """Keys."""
    return min(NUMBERS // size, 64)


def _splits(programs: int, blocks: int, device: torch.device) -> int:
    """Of each row's keys, so that all of the GPU's processors have something to read."""
    wanted = PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    useful = min(wanted // programs, blocks, MOST_SPLITS)
    return 1 << max(useful, 1).bit_length() - 1
