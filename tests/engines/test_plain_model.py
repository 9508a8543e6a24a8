"""Models that cannot be packed are computed row by row, as by `generate`, and the log says so."""

import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.engines.driving import Reference, SaveModel, Stepping
from worker.engines import generation
from worker.engines.budget import StepBudget
from worker.engines.kv_cache import Row
from worker.engines.packed_model import NotPackableError, PackedModel
from worker.engines.plain_model import MOST_AT_ONCE, PlainModel, Way

Load = Callable[..., Stepping]
MAMBA = {"state_size": 4, "expand": 1, "time_step_rank": 4}
# How each is made small, the way in which it is right, and why it cannot be packed.
ARCHITECTURES: dict[str, tuple[dict[str, Any], Way, str]] = {
    "gemma2": ({"attn_logit_softcapping": 20.0, "sliding_window": 16}, Way.CHUNKS, "'softcap'"),
    "gpt_oss": ({"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16}, Way.CHUNKS, "'s_aux'"),
    "llama4_text": (
        {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 32},
        Way.CHUNKS,
        "'chunked_attention'",
    ),
    "bloom": ({"n_layer": 2, "n_head": 4}, Way.CHUNKS, "an attention of its own"),
    "rwkv": ({"attention_hidden_size": 32, "context_length": 256}, Way.CHUNKS, "an attention of its own"),
    "mamba": (MAMBA, Way.WHOLE, "'linear_attention'"),
    "falcon_mamba": (MAMBA, Way.WHOLE, "'linear_attention'"),
    "mamba2": (
        {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
        Way.CHUNKS,
        "'linear_attention'",
    ),
    "jamba": (
        {"mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
        Way.WHOLE,
        "'linear_attention'",
    ),
    "bamba": (
        {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1},
        Way.CHUNKS,
        "'linear_attention'",
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}, Way.CHUNKS, "'conv'"),
    "qwen3_next": (
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
        Way.CHUNKS,
        "'linear_attention'",
    ),
    "recurrent_gemma": (
        {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16, "num_key_value_heads": 1},
        Way.AFRESH,
        "layers",
    ),
    "openai-gpt": (
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
        Way.AFRESH,
        "an attention of its own",
    ),
}


@pytest.fixture(scope="module")
def saved(save_model: SaveModel) -> Callable[[str], Path]:
    paths: dict[str, Path] = {}

    def saved(name: str) -> Path:
        if name not in paths:
            paths[name] = save_model(name, **ARCHITECTURES[name][0])
        return paths[name]

    return saved


def random_prompt(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(2, 384), k=length)


def assert_as_by_generate(engine: Stepping, reference: Reference, prompts: dict[str, list[int]]) -> None:
    # RecurrentGemma's cache is the module's own: `generate` starts a prompt of one token from what the last one left.
    uses_cache = engine.generation._model.way is not Way.AFRESH
    for request_id, prompt in prompts.items():
        assert engine.answers[request_id].token_ids == reference.greedy(prompt, 20, use_cache=uses_cache), prompt


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_cannot_be_packed_is_continued_as_by_generate_and_the_log_says_why(
    saved: Callable[[str], Path], load: Load, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    _, way, why = ARCHITECTURES[name]
    engine = load(saved(name), slots=3)
    (warning,) = caplog.messages
    assert f"is computed {way.value}, slower: " in warning
    assert why in warning
    engine.generation.budget = StepBudget(alone=16, beside=10)
    chance = random.Random(5)
    prompts = {}
    for number in range(12):
        prompt = random_prompt((3, 70, 30, 1, 17)[number % 5], number)
        request_id = engine.submit(prompt, max_tokens=20)
        prompts[request_id] = prompt
        engine.step(chance.randint(0, 4))
        if number % 4 == 1:
            engine.abort(request_id)
            del prompts[request_id]
    engine.finish()
    assert_as_by_generate(engine, Reference(saved(name)), prompts)


@pytest.mark.parametrize("name", ["gemma2", "mamba", "jamba", "openai-gpt"])
def test_who_came_last_makes_room_and_is_computed_again(saved: Callable[[str], Path], load: Load, name: str) -> None:
    engine = load(saved(name), slots=4)
    engine.generation._cache = cache = engine.generation._model.hold(256)
    prompts = {
        engine.submit(prompt, max_tokens=20): prompt for prompt in (random_prompt(60, seed) for seed in range(4))
    }
    most, preempted = 0, False
    while engine.stepper.has_work():
        engine.step()
        preempted |= len(engine.generation.running) < most and bool(engine.generation.waiting)
        most = max(most, len(engine.generation.running))
    assert preempted
    assert_as_by_generate(engine, Reference(saved(name)), prompts)
    assert cache.space.free == 256


@pytest.mark.parametrize("name", ["gemma2", "mamba"])
@pytest.mark.parametrize("aborted", [False, True])
def test_a_row_s_cache_is_dropped_when_its_sequence_ends(
    saved: Callable[[str], Path], load: Load, name: str, aborted: bool
) -> None:
    engine = load(saved(name))
    request_id = engine.submit("the quick", max_tokens=20)
    engine.step(3)
    (held,) = engine.generation._cache.held.values()
    cache = weakref.ref(held.cache)
    del held
    if aborted:
        engine.abort(request_id)
    else:
        engine.finish()
    assert cache() is None
    assert not engine.generation._cache.held


@pytest.mark.parametrize("name", ["gemma2", "mamba", "openai-gpt"])
def test_the_prompt_s_logprobs_are_those_of_the_whole(saved: Callable[[str], Path], load: Load, name: str) -> None:
    engine = load(saved(name))
    engine.generation.budget = StepBudget(alone=16, beside=10)
    prompt = random_prompt(50, 1)
    answer = engine.answer(prompt, max_tokens=3, echo=True, logprobs=0)
    expected = Reference(saved(name)).logprobs(prompt)
    got = [one.logprob for one in answer.prompt_logprobs[1:]]
    assert got == pytest.approx([float(expected[place, token]) for place, token in enumerate(prompt[1:])], abs=1e-4)


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "jamba"])
def test_in_half_precision_too_a_state_that_chunks_would_lose_is_seen(
    saved: Callable[[str], Path], load: Load, name: str
) -> None:
    assert load(saved(name), dtype="bfloat16").generation._model.way is Way.WHOLE


def test_a_prompt_longer_than_one_call_takes(save_model: SaveModel, load: Load) -> None:
    path = save_model("gemma2", sliding_window=16, max_position_embeddings=1024)
    engine = load(path)
    engine.generation.budget = StepBudget(alone=700, beside=10)
    prompt = random_prompt(2 * MOST_AT_ONCE + 50, 3)
    assert engine.answer(prompt, max_tokens=5).token_ids == Reference(path).greedy(prompt, 5)


def test_ids_below_0_stand_for_those_that_were_drawn_before(saved: Callable[[str], Path], load: Load) -> None:
    model = load(saved("gemma2")).generation._model
    known, drawn = [model.forward([(Row(), ids)], [1], torch.tensor([7, 8])) for ids in ([5, 6, 8], [5, 6, -2])]
    assert torch.equal(known, drawn)


def test_what_a_row_needs_of_any_length_is_counted_too(saved: Callable[[str], Path], load: Load) -> None:
    def bytes_of(name: str) -> int:
        return sum(load(saved(name)).generation._model.bytes_per_token.values())

    assert bytes_of("bloom") == 2 * 2 * 32 * 4  # layers, keys and values, channels, float32
    assert bytes_of("mamba") == 2 * 48 * (4 + 4) * 4 // 64  # layers, channels, both states, float32, a block


def test_whatever_goes_wrong_with_packing_there_is_another_path(
    llama: Path, reference: Reference, load: Load, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PackedModel) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(PackedModel, "_kernels_fit", fail)
    engine = load(llama)
    assert caplog.messages == ["LlamaForCausalLM is computed row by row, slower: no such kernel"]
    assert engine.answer("the quick", max_tokens=20).token_ids == reference.greedy("the quick", 20)


def test_a_model_that_was_rebuilt_before_it_failed_is_loaded_again(
    llama: Path, reference: Reference, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rebuilt(model: PreTrainedModel, *_: Any, **__: Any) -> None:
        torch.nn.init.zeros_(model.get_output_embeddings().weight)
        raise NotPackableError("it does not compile", is_intact=False)

    monkeypatch.setattr(generation, "PackedModel", rebuilt)
    engine = load(llama)
    assert isinstance(engine.generation._model, PlainModel)
    assert engine.answer("the quick", max_tokens=20).token_ids == reference.greedy("the quick", 20)
