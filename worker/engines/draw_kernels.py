"""Draws from logits as Triton kernels. `sampling.py` and `philox.py` have the same in torch, and say why it is right.

A draw from all tokens makes their noise where it is needed, and writes none of it. For one from the most probable
tokens, how often it has to be repeated is not known beforehand, and no one waits for it.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from worker.engines.transfer import sent

BLOCK = 4096  # tokens that a program looks at at once
PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def _gumbel(word):
    uniform = tl.minimum((word.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -libdevice.log(-libdevice.log1p(-uniform))


@triton.jit
def _noise(keys, which, first, COUNTERS: tl.constexpr):
    """Of ids that follow `first`, four of each counter, in four tensors; and the first id of each counter."""
    seed = tl.load(keys + 3 * which)
    index, choice = tl.load(keys + 3 * which + 1).to(tl.int32), tl.load(keys + 3 * which + 2).to(tl.int32)
    counter = first // 4 + tl.arange(0, COUNTERS)
    one, two, three, four = tl.philox(seed, counter, index, choice, 0)
    return _gumbel(one), _gumbel(two), _gumbel(three), _gumbel(four), 4 * counter


@triton.jit
def _better(best, place, logits, ids, noise, top, temperature, vocabulary):
    inside = ids < vocabulary
    logit = tl.load(logits + ids, mask=inside, other=-float("inf")).to(tl.float32)
    score = tl.where(inside, (logit - top) / temperature + noise, -float("inf"))
    return tl.maximum(best, score), tl.where(score > best, ids, place)


@triton.jit
def _draw_part(
    logits, rows, tops, temperatures, keys, scores, winners, vocabulary, row_stride, share, COUNTERS: tl.constexpr
):
    """Program (draw, part): the winner among `share` ids."""
    which, part = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + which)
    logits += row * row_stride
    top, temperature = tl.load(tops + row).to(tl.float32), tl.load(temperatures + which)
    best = tl.full([COUNTERS], -float("inf"), tl.float32)
    place = tl.zeros([COUNTERS], tl.int32)
    for first in range(part * share, tl.minimum((part + 1) * share, vocabulary), 4 * COUNTERS):
        one, two, three, four, ids = _noise(keys, which, first, COUNTERS)
        best, place = _better(best, place, logits, ids, one, top, temperature, vocabulary)
        best, place = _better(best, place, logits, ids + 1, two, top, temperature, vocabulary)
        best, place = _better(best, place, logits, ids + 2, three, top, temperature, vocabulary)
        best, place = _better(best, place, logits, ids + 3, four, top, temperature, vocabulary)
    highest = tl.max(best, 0)
    at = which * tl.num_programs(1) + part
    tl.store(scores + at, highest)
    tl.store(winners + at, tl.min(tl.where(best == highest, place, vocabulary), 0))


@triton.jit
def _add_noise(scaled, keys, noisy, vocabulary, COUNTERS: tl.constexpr):
    """Program (draw, part of 4 * COUNTERS ids); both are float32 [draws, vocabulary]."""
    which = tl.program_id(0)
    one, two, three, four, ids = _noise(keys, which, tl.program_id(1) * 4 * COUNTERS, COUNTERS)
    _add(scaled, noisy, which, ids, one, vocabulary)
    _add(scaled, noisy, which, ids + 1, two, vocabulary)
    _add(scaled, noisy, which, ids + 2, three, vocabulary)
    _add(scaled, noisy, which, ids + 3, four, vocabulary)


@triton.jit
def _add(scaled, noisy, which, ids, noise, vocabulary):
    at = which.to(tl.int64) * vocabulary + ids
    tl.store(noisy + at, tl.load(scaled + at, mask=ids < vocabulary) + noise, mask=ids < vocabulary)


@triton.jit
def _draw_within(scaled, noisy, top_p, winners, vocabulary, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    scaled += row.to(tl.int64) * vocabulary
    noisy += row.to(tl.int64) * vocabulary
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocabulary, BLOCK):
        total += tl.exp(tl.load(scaled + first + at, mask=first + at < vocabulary, other=-float("inf")))
    allowed = tl.load(top_p + row) * tl.sum(total, 0)

    bound = tl.full((), -float("inf"), tl.float32)  # only what is more probable may be drawn
    winner = tl.full((), 0, tl.int32)
    searching = tl.full((), True, tl.int1)
    while searching:
        best = tl.full([BLOCK], -float("inf"), tl.float32)
        place = tl.zeros([BLOCK], tl.int32)
        for first in range(0, vocabulary, BLOCK):
            inside = first + at < vocabulary
            score = tl.load(scaled + first + at, mask=inside, other=-float("inf"))
            noise = tl.load(noisy + first + at, mask=inside, other=-float("inf"))
            noise = tl.where(score > bound, noise, -float("inf"))
            place = tl.where(noise > best, first + at, place)
            best = tl.maximum(best, noise)
        highest = tl.max(best, 0)
        winner = tl.min(tl.where(best == highest, place, vocabulary), 0)
        bound = tl.load(scaled + winner)
        before = tl.zeros([BLOCK], tl.float32)
        for first in range(0, vocabulary, BLOCK):
            score = tl.load(scaled + first + at, mask=first + at < vocabulary, other=-float("inf"))
            before += tl.where(score > bound, tl.exp(score), 0.0)
        mass = tl.sum(before, 0)
        searching = (mass >= allowed) & (mass > 0)
    tl.store(winners + row, winner)


def draw_whole(
    logits: Tensor, tops: Tensor, rows: Tensor, temperatures: Sequence[float], draws: Sequence[tuple[int, int, int]]
) -> Tensor:
    """From rows of logits [all, vocabulary] whose largest are tops [all]. rows: int64 [draws]. draws: as Noise has
    them. -> int64 [draws]"""
    count, vocabulary = len(draws), logits.shape[1]
    wanted = PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(logits.device).multi_processor_count
    share = triton.cdiv(vocabulary, min(triton.cdiv(wanted, count), triton.cdiv(vocabulary, BLOCK)))
    share = triton.cdiv(share, BLOCK) * BLOCK
    parts = triton.cdiv(vocabulary, share)
    scores = torch.empty((count, parts), dtype=torch.float32, device=logits.device)
    winners = torch.empty((count, parts), dtype=torch.int64, device=logits.device)
    given = rows, tops, sent(temperatures, torch.float32, logits.device), _keys(draws, logits.device)
    with torch.cuda.device(logits.device):
        _draw_part[count, parts](
            logits, *given, scores, winners, vocabulary, logits.stride(0), share, COUNTERS=BLOCK // 4, num_warps=8
        )
    return winners.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)


def draw_within(scaled: Tensor, top_p: Tensor, draws: Sequence[tuple[int, int, int]]) -> Tensor:
    """scaled: float32 [draws, vocabulary], logits whose largest is 0; top_p: float32 [draws, 1]. -> int64 [draws]"""
    count, vocabulary = scaled.shape
    scaled = scaled.contiguous()
    noisy = torch.empty_like(scaled)
    winners = torch.empty(count, dtype=torch.int64, device=scaled.device)
    keys = _keys(draws, scaled.device)
    with torch.cuda.device(scaled.device):
        parts = triton.cdiv(vocabulary, BLOCK)
        _add_noise[count, parts](scaled, keys, noisy, vocabulary, COUNTERS=BLOCK // 4, num_warps=8)
        _draw_within[(count,)](scaled, noisy, top_p, winners, vocabulary, BLOCK=BLOCK, num_warps=16)
    return winners


def _keys(draws: Sequence[tuple[int, int, int]], device: torch.device) -> Tensor:
    """int64 [draws, 3]: seed, index and choice."""
    return sent([(_signed(seed), index, choice) for seed, choice, index in draws], torch.int64, device)


def _signed(seed: int) -> int:
    """The lowest 64 bits, as torch has them."""
    return (seed + 2**63) % 2**64 - 2**63
