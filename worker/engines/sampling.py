"""From logits to tokens: penalties, temperature, truncation and the Gumbel-max draw, for a batch of rows at once.

Each row has parameters and noise of its own, so that it draws the same alone and in a crowd.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.messages import SamplingParams
from worker.engines.philox import Noise

GREEDY_BELOW = 1e-5  # dividing by a smaller temperature leaves float32
PREFIXES = (128, 2048)  # a full sort of 49,152 logits costs 3.3 ms, the first 128 of them 0.07


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

    def see(self, token_ids: list[int], *, completion: bool) -> None:
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self._seen.device)
        self._seen[ids] = True
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


@dataclass(frozen=True, slots=True)
class Draw:
    """How the next token of one sequence is drawn; `index` is that token's place in the completion."""

    params: SamplingParams
    choice: int
    index: int
    penalties: Penalties | None = None

    @property
    def is_random(self) -> bool:
        return self.params.temperature >= GREEDY_BELOW

    @property
    def is_truncated(self) -> bool:
        return self.params.top_p < 1 or self.params.top_k > 0 or self.params.min_p > 0


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """The next token of each row of float32 [rows, vocabulary], which is overwritten.

    None for a row whose logits are not finite.
    """
    for row, draw in enumerate(draws):
        if draw.penalties is not None:
            draw.penalties.apply(logits[row])
    best, tokens = logits.max(dim=-1)
    for truncated in (False, True):
        rows = [row for row, draw in enumerate(draws) if draw.is_random and draw.is_truncated is truncated]
        if rows:
            draw_rows = _draw_truncated if truncated else _draw_whole
            tokens[rows] = draw_rows(_scaled(logits, best, draws, rows), [draws[row] for row in rows])
    finite = best.isfinite().tolist()
    return [token if ok else None for token, ok in zip(tokens.tolist(), finite, strict=True)]


def _scaled(logits: Tensor, best: Tensor, draws: Sequence[Draw], rows: list[int]) -> Tensor:
    """Logits over temperature, shifted so that the largest is 0: a tiny temperature cannot overflow."""
    temperature = _column([draws[row].params.temperature for row in rows], logits)
    if len(rows) == len(draws):
        return logits.sub_(best.unsqueeze(1)).div_(temperature)
    return (logits[rows] - best[rows].unsqueeze(1)).div_(temperature)


def _noise(draws: Sequence[Draw], device: torch.device) -> Noise:
    return Noise([(draw.params.seed, draw.choice, draw.index) for draw in draws], device)


def _draw_whole(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    return (_noise(draws, scaled.device).whole(scaled.shape[1]) + scaled).argmax(dim=-1)


def _draw_truncated(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    """min_p, then top_k, then top_p keep a prefix of the sorted vocabulary, mostly a short one.

    So each row looks at a short prefix first and at a longer one only where it ends beyond that.
    """
    vocabulary = scaled.shape[1]
    log_total = scaled.logsumexp(dim=-1, keepdim=True)
    tokens = torch.empty(len(draws), dtype=torch.int64, device=scaled.device)
    left = list(range(len(draws)))
    for width in (*(width for width in PREFIXES if width < vocabulary), vocabulary):
        values, ids = scaled[left].topk(width, dim=-1)
        kept, decided = _kept((values - log_total[left]).exp(), [draws[row].params for row in left], vocabulary)
        ready = [place for place, known in enumerate(decided) if known]
        if ready:
            rows = [left[place] for place in ready]
            longest = max(kept[place] for place in ready)
            tokens[rows] = _draw_of(
                values[ready, :longest],
                ids[ready, :longest],
                [kept[place] for place in ready],
                _noise([draws[row] for row in rows], scaled.device),
            )
        left = [row for place, row in enumerate(left) if not decided[place]]
        if not left:
            break
    return tokens


def _draw_of(values: Tensor, ids: Tensor, kept: list[int], noise: Noise) -> Tensor:
    """One of the first kept[row] candidates of each row."""
    ranks = torch.arange(values.shape[1], device=values.device)
    outside = ranks >= _column(kept, values)
    winner = (values + noise.at(ids)).masked_fill_(outside, -torch.inf).argmax(dim=-1, keepdim=True)
    return ids.gather(1, winner).squeeze(1)


def _kept(probabilities: Tensor, params: list[SamplingParams], vocabulary: int) -> tuple[list[int], list[bool]]:
    """How many of each row's most probable tokens stay, and whether this prefix was long enough to tell."""
    width = probabilities.shape[1]
    ranks = torch.arange(width, device=probabilities.device)
    top_k = _column([p.top_k if p.top_k > 0 else vocabulary for p in params], probabilities)
    min_p = _column([p.min_p for p in params], probabilities)
    top_p = _column([p.top_p for p in params], probabilities)
    inside = (ranks < top_k) & (probabilities >= min_p * probabilities[:, :1])
    # Where top_k or min_p end inside the prefix, top_p is a share of what they left; elsewhere of everything.
    cut = inside.sum(dim=-1, keepdim=True) < width
    mass = (probabilities * inside).cumsum(dim=-1)
    total = torch.where(cut, mass[:, -1:], 1.0)
    before = mass - probabilities
    inside &= (before < top_p * total) | (top_p >= 1)
    inside[:, 0] = True
    kept = inside.sum(dim=-1)
    unlimited = torch.tensor([p.top_k <= 0 and p.min_p <= 0 for p in params], device=probabilities.device)
    known = (cut.squeeze(1) | unlimited) & (kept < width)
    return kept.tolist(), [True] * len(params) if width == vocabulary else known.tolist()


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).unsqueeze(1)
