"""Architectures whose rows are packed and continued as by `generate`, and those that are refused at load."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from shared.errors import StartupError
from tests.engines.driving import Reference, SaveModel, Stepping
from worker.engines.budget import StepBudget
from worker.engines.packed_model import PackedModel

Load = Callable[..., Stepping]
SUPPORTED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "gemma": {},
    "phi3": {"sliding_window": 24},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2 with windows": {
        "use_sliding_window": True,
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention"],
    },
}
PROMPTS = [[5, 9, 200], list(range(10, 80)), list(range(100, 130))]


@pytest.mark.parametrize("name", SUPPORTED)
def test_an_architecture_is_continued_as_by_generate(save_model: SaveModel, load: Load, name: str) -> None:
    path = save_model(name.partition(" ")[0], **SUPPORTED[name])
    engine = load(path)
    assert isinstance(engine.generation._model, PackedModel)
    engine.generation.budget = StepBudget(alone=16, beside=10)
    ids = []
    for prompt in PROMPTS:
        ids.append(engine.submit(prompt, max_tokens=20))
        engine.step(2)
    engine.finish()
    reference = Reference(path)
    for prompt, request_id in zip(PROMPTS, ids, strict=True):
        assert engine.answers[request_id].token_ids == reference.greedy(prompt, 20)


def test_a_translation_model_is_refused(save_model: SaveModel, load: Load) -> None:
    path = save_model("t5", AutoModelForSeq2SeqLM, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(StartupError, match="neither a causal language model nor a text encoder"):
        load(path)


def test_a_model_that_sees_what_follows_is_refused(save_model: SaveModel, load: Load) -> None:
    path = save_model("bert", AutoModelForCausalLM)
    with pytest.raises(StartupError, match="does not support BertLMHeadModel: its logits in parts and as a whole"):
        load(path)


def test_rotary_scaling_that_depends_on_the_neighbours_ends_where_it_would_begin(
    save_model: SaveModel, load: Load
) -> None:
    scaling = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 128,
    }
    path = save_model("llama", rope_parameters=scaling)
    assert load(path).info.max_model_len == 128
    with pytest.raises(StartupError, match="more than the 128 tokens"):
        load(path, max_model_len=200)
