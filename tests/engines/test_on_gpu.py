"""What only a GPU runs: kernels, compiled layers, CUDA graphs, steps launched before the last tokens are known."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.messages import SamplingParams
from tests.engines.driving import Answer, Reference, SaveModel, Stepping
from tests.engines.test_lora import KINDS as KINDS_OF_LORA
from tests.engines.test_lora import references as adapted_references
from tests.engines.test_lora import save_adapter
from worker.engines.budget import StepBudget
from worker.engines.sampling import Draw, sample

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
    pytest.mark.filterwarnings("default"),  # torch's compiler has some of its own
]

Load = Callable[..., Stepping]
CHANCE = random.Random(11)
SHARED = CHANCE.choices(range(2, 384), k=70)
PROMPTS = [
    *(CHANCE.choices(range(2, 384), k=length) for length in (1, 3, 40, 200, 17, 90)),
    *([*SHARED, *CHANCE.choices(range(2, 384), k=length)] for length in (1, 30, 5)),
    SHARED,
]
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen3": {"head_dim": 96, "num_attention_heads": 6},
}
KINDS: list[dict[str, float]] = [
    {},
    {"top_p": 0.1},
    {"top_p": 0.95},
    {"top_k": 7},
    {"min_p": 0.05, "top_k": 100, "top_p": 0.6},
    {"top_p": 1e-9},
]


@pytest.fixture(scope="module", params=[True, False], ids=["eager", "graphs"])
def engine(request: pytest.FixtureRequest, llama: Path, load: Load) -> Stepping:
    return load(llama, device="cuda", dtype="float32", slots=6, enforce_eager=request.param)


def crowd(engine: Stepping) -> list[Answer]:
    engine.forget()
    engine.generation.budget = StepBudget(alone=64, beside=24)
    return engine.crowd({"payload": prompt, "max_tokens": 30} for prompt in PROMPTS)


def test_a_worker_with_a_gpu_has_the_same_model(engine: Stepping, llama: Path, load: Load) -> None:
    assert engine.info.fingerprint == load(llama).info.fingerprint


def test_in_float32_a_crowd_is_answered_as_by_generate(engine: Stepping, reference: Reference) -> None:
    for prompt, answer in zip(PROMPTS, crowd(engine), strict=True):
        assert answer.token_ids == reference.greedy(prompt, 30)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", SHAPES)
def test_in_half_precision_every_token_is_among_the_best(
    save_model: SaveModel, load: Load, name: str, dtype: str
) -> None:
    path = save_model(name, **SHAPES[name])
    engine = load(path, device="cuda", dtype=dtype, slots=6)
    answers = crowd(engine)
    reference = Reference(path)
    choices = [reference.worst_choice(*pair) for pair in zip(PROMPTS, (one.token_ids for one in answers), strict=True)]
    assert max(choices) < 0.2
    assert all(answer.finish_reason for answer in answers)
    cached = [answer.usage.cached_tokens for answer in answers if answer.usage is not None]
    assert cached[-3:] == [64, 64, 64]


def test_sampled_penalized_and_constrained_rows_run_beside_greedy_ones(llama: Path, load: Load) -> None:
    engine = load(llama, device="cuda", dtype="bfloat16", slots=6)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 3},
        {"temperature": 0.9, "seed": 3, "top_p": 0.8, "top_k": 20, "min_p": 0.02},
        {"frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {7: 100.0}},
        {"logprobs": 2},
    ]
    requests = [{"payload": PROMPTS[3], "max_tokens": 20, **kind} for kind in kinds]
    answers = engine.crowd(requests)
    assert [len(answer.token_ids) for answer in answers] == [20] * len(kinds)
    assert answers[4].token_ids == [7] * 20
    assert len(answers[5].logprobs) == 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_are_drawn_as_on_a_cpu(dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(4)
    logits = (torch.randn(96, 5001, generator=chance) * torch.linspace(0.1, 8, 96).unsqueeze(1)).to(dtype)
    seeds = random.Random(5)
    draws = [
        Draw(SamplingParams(seed=seeds.getrandbits(64), temperature=0.8, **KINDS[row % len(KINDS)]), row % 3, 7 * row)  # type: ignore[arg-type]
        for row in range(96)
    ]
    expected = sample(logits.clone(), draws)
    assert sample(logits.cuda(), draws).cpu().tolist() == expected.tolist()


def test_when_memory_is_short_rows_move_and_are_computed_again(llama: Path, load: Load, reference: Reference) -> None:
    engine = load(llama, device="cuda", dtype="float32", slots=6, enforce_eager=True)
    generation = engine.generation
    generation._cache = generation._model.hold(700)
    for prompt, answer in zip(PROMPTS, crowd(engine), strict=True):
        assert answer.token_ids == reference.greedy(prompt, 30)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_each_sequence_has_its_own_adapter(llama: Path, load: Load, tmp_path: Path, dtype: str, eager: bool) -> None:
    adapters = {
        name: save_adapter(llama, tmp_path / name, seed, **config)
        for seed, (name, config) in enumerate(KINDS_OF_LORA.items())
    }
    modules = tuple((name, str(folder)) for name, folder in adapters.items())
    engine = load(llama, device="cuda", dtype=dtype, slots=6, enforce_eager=eager, lora_modules=modules)
    engine.generation.budget = StepBudget(alone=64, beside=24)
    asked = [(prompt, adapter) for prompt in PROMPTS[:6] for adapter in range(len(adapters) + 1)]
    answers = engine.crowd({"payload": prompt, "max_tokens": 20, "adapter": adapter} for prompt, adapter in asked)
    expected = adapted_references(llama, adapters)
    if dtype == "float32":
        told = [expected[adapter].greedy(prompt, 20) for prompt, adapter in asked]
        assert [answer.token_ids for answer in answers] == told
    choices = [
        expected[adapter].worst_choice(prompt, answer.token_ids)
        for (prompt, adapter), answer in zip(asked, answers, strict=True)
    ]
    assert max(choices) < 0.2


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_a_request_that_there_is_no_memory_for_fails_alone(save_model: SaveModel, load: Load, eager: bool) -> None:
    """To score 250 tokens of a prompt takes 200 MB a copy; the others of a step need few."""
    path = save_model("llama", vocab_size=200_000)
    engine = load(path, device="cuda", dtype="float32", slots=6, enforce_eager=eager, gpu_memory_utilization=0.3)
    requests = [{"payload": prompt, "max_tokens": 30} for prompt in PROMPTS[:5]]
    expected = [answer.token_ids for answer in engine.alone(requests)]
    engine.forget()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + 100 * 2**20) / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        large = engine.submit(CHANCE.choices(range(2, 384), k=250), max_tokens=3, echo=True, logprobs=5)
        answers = engine.crowd(requests)
        assert [answer.token_ids for answer in answers] == expected
        assert "out of memory" in str(engine.answers[large].error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


LOSES_ITS_GPU = """
import sys, torch
from worker.engines import generation
from worker.engines.options import EngineOptions
from worker.engines.transformers_impl import TransformersStepper
from worker.engines.base import EngineRequest
from shared.messages import SamplingParams

engine = TransformersStepper(EngineOptions(model_path=sys.argv[1], device="cuda", enforce_eager=True))
engine.load()
generation.sample = lambda logits, *rest: logits[:, torch.tensor([10**6], device="cuda")]
engine.add(engine.prepare(EngineRequest("r", "completion", {"prompt": "a"}, SamplingParams(seed=1))))
try:
    engine.step()
except Exception:
    print("goes on")
"""


def test_a_process_whose_gpu_is_lost_ends(llama: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", LOSES_ITS_GPU, str(llama)], capture_output=True, text=True)
    assert ended.returncode != 0  # torch may abort it even before, where it frees a tensor
    assert "goes on" not in ended.stdout
