"""Products of bfloat16 on a CPU, and models that are computed with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engines.driving import Reference, SaveModel, Stepping
from worker.engines import cpu_linear
from worker.engines.cpu_linear import bfloat16_is_faster, bring_into_order, has_bfloat16

PROMPTS = [[5, 9, 200], list(range(10, 80)), list(range(100, 130)), [7]]


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_that_of_a_plain_layer(tokens: int, has_bias: bool) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(96, 72, bias=has_bias), torch.nn.Linear(72, 8)).bfloat16()
    given = torch.randn(1, tokens, 96).bfloat16()
    with torch.inference_mode():
        expected = model(given)
        bring_into_order(model)
        assert type(model[0]) is not torch.nn.Linear
        assert torch.allclose(model(given), expected, atol=0.02)


def test_other_layers_stay_as_they_are() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    bring_into_order(model)
    assert [type(layer) for layer in model] == [torch.nn.Linear, torch.nn.LayerNorm]


def test_in_bfloat16_every_token_is_among_the_best(
    save_model: SaveModel, load: Callable[..., Stepping], llama: Path
) -> None:
    reference = Reference(llama)
    answers = load(llama, dtype="bfloat16").crowd({"payload": prompt, "max_tokens": 25} for prompt in PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert reference.worst_choice(prompt, answer.token_ids) < 0.2


@pytest.mark.parametrize(("bfloat16", "float32", "is_faster"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_what_is_measured_decides(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, float32: float, is_faster: bool
) -> None:
    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    monkeypatch.setattr(
        cpu_linear, "_seconds", lambda _, given, __: bfloat16 if given.dtype is torch.bfloat16 else float32
    )
    assert bfloat16_is_faster.__wrapped__(64, 64) is is_faster  # what was measured before is remembered
