"""Penalties, truncation and the draw, against slow and plain versions of themselves."""

from typing import Any

import pytest
import torch

from shared.messages import SamplingParams
from worker.engines.sampling import Draw, Penalties, sample

CPU = torch.device("cpu")
VOCABULARY = 5000


def drawn(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    ids: list[int] = sample(logits, draws).tolist()
    return ids


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"seed": 1, **fields})


def some_logits(rows: int = 1, spread: float = 2.0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(4)) * spread


def tokens_drawn(logits: torch.Tensor, times: int, **fields: Any) -> list[int]:
    """The draws of `times` consecutive completion tokens from the same logits."""
    draws = [Draw(params(**fields), 0, index) for index in range(times)]
    return drawn(logits.expand(times, -1).clone(), draws)


def allowed(
    logits: torch.Tensor, *, top_p: float = 1, top_k: int = 0, min_p: float = 0, temperature: float = 1
) -> set[int]:
    """min_p, then top_k, then top_p over a full sort."""
    probabilities, ids = torch.softmax(logits.double() / temperature, -1).sort(descending=True)
    keep = probabilities >= min_p * probabilities[0]
    if top_k:
        keep[top_k:] = False
    kept = probabilities * keep / (probabilities * keep).sum()
    keep &= (kept.cumsum(0) - kept < top_p) | (top_p >= 1)
    return set(ids[keep].tolist())


def test_temperature_zero_takes_the_largest() -> None:
    logits = some_logits(3)
    expected = logits.argmax(-1).tolist()
    assert drawn(logits, [Draw(params(temperature=0.0), 0, 0)] * 3) == expected


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e-4])
def test_a_tiny_temperature_is_greedy_too(temperature: float) -> None:
    logits = some_logits()
    assert tokens_drawn(logits, 1, temperature=temperature) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_probable(temperature: float) -> None:
    logits = some_logits(vocabulary=8, spread=1.0)
    drawn = torch.tensor(tokens_drawn(logits, 20_000, temperature=temperature))
    share = torch.bincount(drawn, minlength=8) / 20_000
    assert torch.allclose(share, torch.softmax(logits[0] / temperature, -1), atol=0.015)


@pytest.mark.parametrize(
    "limits",
    [
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"top_p": 0.9999},
        {"top_p": 0.0},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 128},
        {"top_k": 3000},
        {"top_k": 9999},
        {"min_p": 0.2},
        {"min_p": 1e-5},
        {"min_p": 1.0},
        {"top_k": 50, "top_p": 0.5},
        {"min_p": 0.01, "top_p": 0.8, "temperature": 1.5},
        {"min_p": 0.05, "top_p": 0.9, "top_k": 500, "temperature": 0.7},
    ],
)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_only_what_the_limits_leave_is_drawn_and_as_often(limits: dict[str, Any], spread: float) -> None:
    logits = some_logits(spread=spread)
    expected = allowed(logits[0], **limits) or {int(logits.argmax())}
    drawn = tokens_drawn(logits, 400, **limits)
    assert set(drawn) <= expected
    # The draw is the largest of scaled logit plus noise among what is left, wherever the candidates were sorted.
    unlimited = torch.full_like(logits, -torch.inf)
    unlimited[0, list(expected)] = logits[0, list(expected)]
    assert tokens_drawn(unlimited, 400, temperature=limits.get("temperature", 1.0)) == drawn


def test_rows_draw_the_same_alone_and_in_a_crowd() -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"top_p": 0.9},
        {"top_k": 5, "temperature": 0.7},
        {"min_p": 0.1},
        {"top_p": 0.5, "seed": -3},
        {"temperature": 3.0, "seed": 2**80},
    ]
    logits = some_logits(len(kinds))
    draws = [Draw(params(**kind), row % 2, row) for row, kind in enumerate(kinds)]
    alone = [drawn(logits[row : row + 1].clone(), [draw])[0] for row, draw in enumerate(draws)]
    assert drawn(logits, draws) == alone


def test_a_row_that_is_not_finite_is_told_and_hurts_nobody() -> None:
    logits = some_logits(3)
    expected = logits.argmax(-1).tolist()
    logits[1, 17] = torch.nan
    got = drawn(
        logits, [Draw(params(temperature=0.0), 0, 0), Draw(params(), 0, 0), Draw(params(temperature=0.0), 0, 0)]
    )
    assert got == [expected[0], -1, expected[2]]


def test_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = some_logits()
    seen = [3, 5, 5, 800]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), logits.clone())
    penalties = Penalties(params(repetition_penalty=1.3), VOCABULARY, CPU)
    penalties.see(torch.tensor(seen[:2]), completion=False)
    penalties.see(torch.tensor(seen[2:]), completion=True)
    penalties.apply(logits[0])
    torch.testing.assert_close(logits, expected)


def test_presence_and_frequency_count_the_completion_alone() -> None:
    logits = torch.zeros(6)
    penalties = Penalties(params(presence_penalty=0.5, frequency_penalty=0.25), 6, CPU)
    penalties.see(torch.tensor([0, 1]), completion=False)
    penalties.see(torch.tensor([1, 2]), completion=True)
    penalties.see(torch.tensor([2]), completion=True)
    penalties.apply(logits)
    assert logits.tolist() == [0, -0.75, -1.0, 0, 0, 0]


def test_penalties_reach_greedy_rows() -> None:
    logits = some_logits()
    best, second = logits[0].topk(2).indices.tolist()
    penalties = Penalties(params(presence_penalty=2.0, temperature=0.0), VOCABULARY, CPU)
    penalties.see(torch.tensor([best]), completion=True)
    logits[0, best] = logits[0, second] + 0.5
    assert drawn(logits, [Draw(params(temperature=0.0), 0, 1, penalties)]) == [second]
