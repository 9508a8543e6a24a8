"""The draw from the most probable tokens as a Triton kernel: how often it has to be repeated is not known beforehand,
and no one waits for it. `sampling.py` has the same in torch, and says why it is right."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def _draw(scaled, noisy, top_p, winners, vocabulary, row_stride, noise_stride, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    scaled += row.to(tl.int64) * row_stride
    noisy += row.to(tl.int64) * noise_stride
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


def draw_within(scaled: Tensor, noisy: Tensor, top_p: Tensor) -> Tensor:
    """scaled, noisy: float32 [rows, vocabulary], logits whose largest is 0, and the same with noise; top_p: float32
    [rows, 1]. -> int64 [rows]"""
    rows, vocabulary = scaled.shape
    winners = torch.empty(rows, dtype=torch.int64, device=scaled.device)
    strides = scaled.stride(0), noisy.stride(0)
    _draw[(rows,)](scaled, noisy, top_p, winners, vocabulary, *strides, BLOCK=BLOCK, num_warps=16)
    return winners
