"""Penalties, truncation and the draw, against slow and plain versions of themselves."""

import random
from typing import Any

import pytest
import torch

from shared.messages import SamplingParams
from worker.engines.penalties import Penalties
from worker.engines.sampling import Bias, Draw, sample

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
    penalties = Penalties(1, 9, VOCABULARY, CPU)
    row = penalties.enter(seen[:2], seen[2:])
    penalties.apply(logits, [0], [row], [params(repetition_penalty=1.3)])
    torch.testing.assert_close(logits, expected)


def test_presence_and_frequency_count_the_completion_alone() -> None:
    logits = torch.zeros(1, 6)
    penalties = Penalties(1, 9, 6, CPU)
    row = penalties.enter([0, 1], [1, 2])
    penalties.count([row], torch.tensor([2]))
    penalties.apply(logits, [0], [row], [params(presence_penalty=0.5, frequency_penalty=0.25)])
    assert logits.tolist() == [[0, -0.75, -1.0, 0, 0, 0]]


def test_penalties_reach_greedy_rows() -> None:
    logits = some_logits()
    best, second = logits[0].topk(2).indices.tolist()
    penalties = Penalties(1, 9, VOCABULARY, CPU)
    row = penalties.enter([], [best])
    logits[0, best] = logits[0, second] + 0.5
    asked = params(presence_penalty=2.0, temperature=0.0)
    assert sample(logits, [Draw(asked, 0, 1, row)], penalties).tolist() == [second]


def test_what_is_asked_of_rows_does_not_reach_their_neighbours() -> None:
    """Of many, some penalized, some biased, some that may not end; each as if it were alone."""
    logits, chance = some_logits(80), random.Random(3)
    penalties = Penalties(80, 9, VOCABULARY, CPU)
    draws = []
    for place in range(80):
        asked = params(
            temperature=0.0,
            repetition_penalty=chance.choice([1.0, 1.3]),
            presence_penalty=chance.choice([0.0, 0.7]),
            frequency_penalty=chance.choice([0.0, 0.4]),
        )
        top = logits[place].topk(6).indices.tolist()
        row = penalties.enter(top[:1], top[1:2] * 3) if Penalties.asked_for(asked) else None
        bias = Bias({top[2]: -100.0, top[5]: 1.5}, CPU) if place % 3 == 0 else None
        draws.append(Draw(asked, 0, 4, row, bias, top[3:4] if place % 4 == 0 else ()))
    alone = [sample(logits[place : place + 1].clone(), [draw], penalties).item() for place, draw in enumerate(draws)]
    plain = logits.argmax(dim=-1).tolist()
    assert sample(logits.clone(), draws, penalties).tolist() == alone != plain
    untouched = [place for place, draw in enumerate(draws) if not draw.changes_logits]
    assert [alone[place] for place in untouched] == [plain[place] for place in untouched] != []


def test_a_row_is_empty_for_who_comes_next() -> None:
    penalties = Penalties(1, 9, 6, CPU)
    penalties.leave(penalties.enter([1], [2, 2]))
    logits = torch.ones(1, 6)
    penalties.apply(logits, [0], [penalties.enter([], [])], [params(repetition_penalty=2.0, frequency_penalty=1.0)])
    assert logits.tolist() == [[1.0] * 6]
