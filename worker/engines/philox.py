"""Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).

The noise of a token depends on (seed, choice, index of the completion token, token id) and on nothing else, so
that a sequence which another worker continues draws what the undisturbed one would have drawn. `draw_kernels.py` makes
the same on GPUs.
"""

import torch
from torch import Tensor

from worker.engines.transfer import sent

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four 32-bit words per counter. All are int64 tensors (torch has no arithmetic on uint32) that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of the product. It wraps around in int64, which leaves its 64 bits right."""
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD


class Noise:
    """Gumbel noise for a batch of rows, each with its own seed (any int, taken modulo 2**64), choice and index."""

    def __init__(self, draws: list[tuple[int, int, int]], device: torch.device) -> None:
        """draws: (seed, choice, index of the completion token) of each row."""
        words = [(seed & _WORD, (seed >> 32) & _WORD, index & _WORD, choice & _WORD) for seed, choice, index in draws]
        columns = sent(words, torch.int64, device).reshape(-1, 4, 1).unbind(1)
        self._key = columns[0], columns[1]
        self._index, self._choice = columns[2], columns[3]

    def whole(self, vocabulary: int) -> Tensor:
        """float32 [rows, vocabulary]: the noise of every token. Four neighbouring ids share a counter."""
        blocks = torch.arange((vocabulary + 3) // 4, device=self._index.device).unsqueeze(0)
        words = philox4x32((blocks, self._index, self._choice, torch.zeros_like(self._index)), self._key)
        return gumbel(torch.stack(words, dim=-1).flatten(1))[:, :vocabulary]


def gumbel(words: Tensor) -> Tensor:
    """Standard Gumbel noise from 32-bit words, finite for each of them.

    The exponential variate is taken as -log1p(-u), which is exact to the last bit where it is small: there lie the
    winners of a large vocabulary.
    """
    uniform = ((words.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()
