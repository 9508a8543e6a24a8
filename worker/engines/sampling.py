"""From logits to tokens: penalties, bias, temperature, truncation and the Gumbel-max draw, for a batch of rows at once.

What a grammar forbids is -inf before (grammar.py), and log probabilities are of the logits as they were before all of
this (logprobs.py). Each row has parameters and noise of its own, so that it draws the same alone and in a crowd.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from shared.errors import StartupError
from shared.messages import SamplingParams
from worker.engines.penalties import Penalties
from worker.engines.philox import Noise
from worker.engines.step_cost import NO_ROOM
from worker.engines.transfer import sent

if torch.cuda.is_available():  # Triton comes with torch for GPUs
    from worker.engines.draw_kernels import draw_whole, draw_within

Kept = TypeVar("Kept")
GREEDY_BELOW = 1e-5  # dividing by a smaller temperature leaves float32


class Bias:
    """What is added to the logits of single tokens."""

    def __init__(self, bias: Mapping[int, float], device: torch.device) -> None:
        self.ids = sent(list(bias), torch.int64, device)
        self.values = sent(list(bias.values()), torch.float32, device)

    @staticmethod
    def apply(biases: Sequence["Bias"], places: Sequence[int], logits: Tensor) -> None:
        """In place, on rows `places` of float32 [all, vocabulary]."""
        sizes = [len(bias.ids) for bias in biases]
        rows, repeats = sent(places, torch.int64, logits.device), sent(sizes, torch.int64, logits.device)
        at = rows.repeat_interleave(repeats, output_size=sum(sizes)), torch.cat([bias.ids for bias in biases])
        logits.index_put_(at, torch.cat([bias.values for bias in biases]), accumulate=True)


@dataclass(frozen=True, slots=True)
class Draw:
    """How the next token of one sequence is drawn; `index` is that token's place in the completion, `penalized` its row
    among the Penalties, `banned` are ids that may come only where nothing else may."""

    params: SamplingParams
    choice: int
    index: int
    penalized: int | None = None
    bias: Bias | None = None
    banned: Sequence[int] = ()

    @property
    def changes_logits(self) -> bool:
        return self.penalized is not None or self.bias is not None or bool(self.banned)

    @property
    def is_random(self) -> bool:
        return self.params.temperature >= GREEDY_BELOW

    @property
    def is_truncated(self) -> bool:
        return self.params.top_p < 1 or self.params.top_k > 0 or self.params.min_p > 0


def sample(logits: Tensor, draws: Sequence[Draw], penalties: Penalties | None = None) -> Tensor:
    """The next token of each row of [rows, vocabulary], which is overwritten: int64 [rows], where the logits are, and
    where nobody waits for them. penalties: of those that are penalized.

    -1 for a row whose logits are not finite.
    """
    if any(draw.changes_logits for draw in draws):
        logits = logits.float()
        _change(logits, draws, penalties)
    best, tokens = logits.max(dim=-1)
    for truncated in (False, True):
        rows = [row for row, draw in enumerate(draws) if draw.is_random and draw.is_truncated is truncated]
        if rows:
            draw_rows = _draw_truncated if truncated else _draw_whole
            places = sent(rows, torch.int64, logits.device)
            tokens[places] = draw_rows(logits, best, places, [draws[row] for row in rows])
    return torch.where(best.isfinite(), tokens, -1)


def check_kernels(device: torch.device, vocabulary: int) -> None:
    """Builds what draws on a GPU. Raises StartupError where Triton cannot build anything."""
    kinds = SamplingParams(seed=0, temperature=1.0), SamplingParams(seed=0, temperature=1.0, top_p=0.5)
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            sample(torch.zeros((2, vocabulary), dtype=dtype, device=device), [Draw(kind, 0, 0) for kind in kinds])
    except torch.OutOfMemoryError:
        raise StartupError(NO_ROOM) from None
    except Exception as problem:  # of a compiler that is missing, a driver too old, and many more
        line = str(problem).strip().partition("\n")[0]
        raise StartupError(f"Triton cannot build kernels, for which it needs a C compiler (gcc): {line}") from problem


def _change(logits: Tensor, draws: Sequence[Draw], penalties: Penalties | None) -> None:
    """In place: what is asked for besides how to draw."""
    places, rows = places_of([draw.penalized for draw in draws])
    if penalties is not None and places:
        penalties.apply(logits, places, rows, [draws[place].params for place in places])
    places, biases = places_of([draw.bias for draw in draws])
    if places:
        Bias.apply(biases, places, logits)
    banned = [(place, token_id) for place, draw in enumerate(draws) for token_id in draw.banned]
    if banned:
        _ban(logits, sent(banned, torch.int64, logits.device).unbind(1))


def places_of(values: Sequence[Kept | None]) -> tuple[list[int], list[Kept]]:
    """Where there are any, and which."""
    places = [place for place, value in enumerate(values) if value is not None]
    return places, [value for value in values if value is not None]


def _ban(logits: Tensor, at: tuple[Tensor, ...]) -> None:
    """at: rows and ids. A grammar that is complete leaves nothing but the end; that must not be taken from it."""
    before = logits[at]
    logits[at] = -torch.inf
    nothing_is_left = logits.max(dim=-1).values == -torch.inf
    logits[at] = torch.where(nothing_is_left[at[0]], before, -torch.inf)


def _draw_whole(logits: Tensor, best: Tensor, places: Tensor, draws: Sequence[Draw]) -> Tensor:
    if logits.is_cuda:
        return draw_whole(logits, best, places, [draw.params.temperature for draw in draws], _noise_keys(draws))
    scaled = _scaled(logits, best, places, draws)
    return (Noise(_noise_keys(draws), scaled.device).whole(scaled.shape[1]) + scaled).argmax(dim=-1)


def _draw_truncated(logits: Tensor, best: Tensor, places: Tensor, draws: Sequence[Draw]) -> Tensor:
    """min_p and top_k first, then top_p of what they left.

    Nothing is sorted for top_p (3.3 ms a row of 49,152): what it leaves are the tokens before which, in the order
    of their probability, lies less than top_p. So the winner of the whole draw is the winner of the truncated one
    if it is among them, as it mostly is. If not, neither is any less probable token, and the draw is repeated
    without all of those.
    """
    params = [draw.params for draw in draws]
    scaled = _scaled(logits, best, places, draws)
    _keep_top_k(scaled, params)
    min_p = _column([p.min_p for p in params], scaled)
    scaled.masked_fill_(scaled < min_p.log(), -torch.inf)  # the largest is 0
    top_p = _column([p.top_p if p.top_p < 1 else 2.0 for p in params], scaled)
    if scaled.is_cuda:
        return draw_within(scaled, top_p, _noise_keys(draws))
    noisy = Noise(_noise_keys(draws), scaled.device).whole(scaled.shape[1]) + scaled
    probabilities = scaled.softmax(dim=-1)
    while True:
        winner = noisy.argmax(dim=-1, keepdim=True)
        bound = scaled.gather(1, winner)
        before = (probabilities * (scaled > bound)).sum(dim=-1, keepdim=True)
        outside = (before >= top_p) & (before > 0)
        if not outside.any():
            return winner.squeeze(1)
        noisy.masked_fill_(outside & (scaled <= bound), -torch.inf)


def _scaled(logits: Tensor, best: Tensor, places: Tensor, draws: Sequence[Draw]) -> Tensor:
    """float32 [draws, vocabulary]: over temperature, shifted so that the largest is 0. A tiny temperature cannot
    overflow."""
    if len(draws) < len(logits):
        logits, best = logits[places], best[places]
    scaled = logits.float().sub_(best.float().unsqueeze(1))
    return scaled.div_(_column([draw.params.temperature for draw in draws], logits))


def _noise_keys(draws: Sequence[Draw]) -> list[tuple[int, int, int]]:
    return [(draw.params.seed, draw.choice, draw.index) for draw in draws]


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
