"""From logits to tokens: penalties, bias, temperature, truncation and the Gumbel-max draw, for a batch of rows at once.

What a grammar forbids is -inf before (grammar.py), and log probabilities are of the logits as they were before all of
this (logprobs.py). Each row has parameters and noise of its own, so that it draws the same alone and in a crowd.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.messages import SamplingParams
from worker.engines.philox import Noise
from worker.engines.transfer import sent

if torch.cuda.is_available():  # Triton comes with torch for GPUs
    from worker.engines.top_p_kernel import draw_within

GREEDY_BELOW = 1e-5  # dividing by a smaller temperature leaves float32


class Penalties:
    """What one sequence's repetition, presence and frequency penalties take from its logits.

    repetition: as in transformers, over prompt and completion; presence and frequency: as OpenAI's, over the
    completion alone.
    """

    def __init__(self, params: SamplingParams, vocabulary: int, device: torch.device) -> None:
        self._params = params
        self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._counts = torch.zeros(vocabulary, dtype=torch.float32, device=device)

    @staticmethod
    def asked_for(params: SamplingParams) -> bool:
        return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0

    def see(self, ids: Tensor, *, completion: bool) -> None:
        """int64 [tokens], where the logits are."""
        self._seen.index_fill_(0, ids, True)
        if completion:
            self._counts.index_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))

    def apply(self, logits: Tensor) -> None:
        """In place, on float32 [vocabulary]."""
        params = self._params
        if params.repetition_penalty != 1.0:
            factor = torch.where(logits < 0, params.repetition_penalty, 1 / params.repetition_penalty)
            logits.mul_(torch.where(self._seen, factor, 1.0))
        if params.presence_penalty != 0.0:
            logits.sub_((self._counts > 0).float(), alpha=params.presence_penalty)
        if params.frequency_penalty != 0.0:
            logits.sub_(self._counts, alpha=params.frequency_penalty)


class Bias:
    """What is added to the logits of single tokens."""

    def __init__(self, bias: Mapping[int, float], device: torch.device) -> None:
        self._ids = sent(list(bias), torch.int64, device)
        self._values = sent(list(bias.values()), torch.float32, device)

    def apply(self, logits: Tensor) -> None:
        """In place, on float32 [vocabulary]."""
        logits.index_add_(0, self._ids, self._values)


@dataclass(frozen=True, slots=True)
class Draw:
    """How the next token of one sequence is drawn; `index` is that token's place in the completion, `banned` are ids
    that may come only where nothing else may."""

    params: SamplingParams
    choice: int
    index: int
    penalties: Penalties | None = None
    bias: Bias | None = None
    banned: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """The most probable token of what the model computed."""
        return not self.is_random and self.penalties is None and self.bias is None and self.banned is None

    @property
    def is_random(self) -> bool:
        return self.params.temperature >= GREEDY_BELOW

    @property
    def is_truncated(self) -> bool:
        return self.params.top_p < 1 or self.params.top_k > 0 or self.params.min_p > 0


def sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The next token of each row of [rows, vocabulary], which is overwritten: int64 [rows], where the logits are, and
    where nobody waits for them.

    -1 for a row whose logits are not finite.
    """
    if all(draw.is_plain for draw in draws):
        best, tokens = logits.max(dim=-1)
        return torch.where(best.isfinite(), tokens, -1)
    logits = logits.float()
    for row, draw in enumerate(draws):
        if draw.penalties is not None:
            draw.penalties.apply(logits[row])
        if draw.bias is not None:
            draw.bias.apply(logits[row])
        if draw.banned is not None:
            _ban(logits[row], draw.banned)
    best, tokens = logits.max(dim=-1)
    for truncated in (False, True):
        rows = [row for row, draw in enumerate(draws) if draw.is_random and draw.is_truncated is truncated]
        if rows:
            draw_rows = _draw_truncated if truncated else _draw_whole
            places = sent(rows, torch.int64, logits.device)
            drawn = [draws[row] for row in rows]
            own = (logits, best) if len(rows) == len(draws) else (logits[places], best[places])
            tokens[places] = draw_rows(_scaled(*own, drawn), drawn)
    return torch.where(best.isfinite(), tokens, -1)


def _ban(logits: Tensor, ids: Tensor) -> None:
    """A grammar that is complete leaves nothing but the end; that must not be taken from it."""
    before = logits[ids]
    logits[ids] = -torch.inf
    logits[ids] = torch.where(logits.max() == -torch.inf, before, -torch.inf)


def _scaled(logits: Tensor, best: Tensor, draws: Sequence[Draw]) -> Tensor:
    """In place: over temperature, shifted so that the largest is 0. A tiny temperature cannot overflow."""
    return logits.sub_(best.unsqueeze(1)).div_(_column([draw.params.temperature for draw in draws], logits))


def _noise(draws: Sequence[Draw], device: torch.device) -> Noise:
    return Noise([(draw.params.seed, draw.choice, draw.index) for draw in draws], device)


def _draw_whole(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    return (_noise(draws, scaled.device).whole(scaled.shape[1]) + scaled).argmax(dim=-1)


def _draw_truncated(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    """min_p and top_k first, then top_p of what they left. `scaled` is overwritten.

    Nothing is sorted for top_p (3.3 ms a row of 49,152): what it leaves are the tokens before which, in the order
    of their probability, lies less than top_p. So the winner of the whole draw is the winner of the truncated one
    if it is among them, as it mostly is. If not, neither is any less probable token, and the draw is repeated
    without all of those.
    """
    params = [draw.params for draw in draws]
    _keep_top_k(scaled, params)
    min_p = _column([p.min_p for p in params], scaled)
    scaled.masked_fill_(scaled < min_p.log(), -torch.inf)  # the largest is 0
    top_p = _column([p.top_p if p.top_p < 1 else 2.0 for p in params], scaled)
    noisy = _noise(draws, scaled.device).whole(scaled.shape[1]) + scaled
    if scaled.is_cuda:
        return draw_within(scaled, noisy, top_p)
    probabilities = scaled.softmax(dim=-1)
    while True:
        winner = noisy.argmax(dim=-1, keepdim=True)
        bound = scaled.gather(1, winner)
        before = (probabilities * (scaled > bound)).sum(dim=-1, keepdim=True)
        outside = (before >= top_p) & (before > 0)
        if not outside.any():
            return winner.squeeze(1)
        noisy.masked_fill_(outside & (scaled <= bound), -torch.inf)


def _keep_top_k(scaled: Tensor, params: Sequence[SamplingParams]) -> None:
    vocabulary = scaled.shape[1]
    kept = [p.top_k if 0 < p.top_k < vocabulary else vocabulary for p in params]
    if (most := max((count for count in kept if count < vocabulary), default=0)) == 0:
        return
    last = sent([[min(count, most) - 1] for count in kept], torch.int64, scaled.device)
    smallest = scaled.topk(most).values.gather(1, last)
    whole = sent([[count == vocabulary] for count in kept], torch.bool, scaled.device)
    scaled.masked_fill_((scaled < smallest) & ~whole, -torch.inf)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return sent(values, torch.float32, like.device).unsqueeze(1)
