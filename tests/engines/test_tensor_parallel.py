"""Models whose layers are dealt out to several processes: their tokens are those of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from shared.errors import StartupError
from tests.engines.dealt_out import PROMPTS, answers, elsewhere
from tests.engines.driving import Reference, SaveModel, Stepping
from worker.engines.options import EngineOptions
from worker.engines.placement import Placement

Load = Callable[..., Stepping]
VOCABULARY = 385 if Version(transformers.__version__) >= Version("5.23") else 386  # older ones need it to come out even
# What the plans of transformers do: tied and uneven vocabularies, biases of parts; products of several layers that
# come whole and go in parts; norms of single heads, embeddings with a forward of their own.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "vocab_size": VOCABULARY, "attention_bias": True},
    "phi3": {"sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16},
}
DEVICES = ["cpu"] if torch.cuda.device_count() < 2 else ["cuda"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs that torch can use")
def test_on_two_gpus_every_token_is_among_the_best(save_model: SaveModel) -> None:
    """By kernels, compiled layers, and sums within CUDA graphs."""
    path = save_model("llama")
    found, reference = elsewhere(path, device="cuda", dtype="bfloat16", tensor_parallel_size=2), Reference(path)
    choices = [reference.worst_choice(*pair) for pair in zip(PROMPTS, found["roomy"], strict=False)]
    assert max(choices) < 0.2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_draw_the_tokens_of_one(save_model: SaveModel, load: Load, name: str, device: str) -> None:
    path = save_model(name, **MODELS[name])
    options = {"device": device, "dtype": "float32", "enforce_eager": True}
    assert elsewhere(path, tensor_parallel_size=2, **options) == answers(load(path, slots=4, **options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="deals out to processes on the CPU, on machines without a GPU")
def test_a_model_that_cannot_be_dealt_out_says_why(save_model: SaveModel, load: Load, encoder: Path) -> None:
    cases = {
        "its 2 heads of keys cannot be dealt out evenly": (save_model("llama"), 3),
        "transformers has no tp_plan for 'bloom'": (save_model("bloom"), 2),
        "the tp_plan of 'mixtral' has 'moe_tp_experts'": (save_model("mixtral"), 2),
        "is for models that generate": (encoder, 2),
    }
    for why, (path, processes) in cases.items():
        with pytest.raises(StartupError, match=f"--tensor-parallel-size.*{why}"):
            load(path, tensor_parallel_size=processes, max_model_len=64)


def test_what_does_not_go_together_is_refused() -> None:
    def place(device: str, **options: Any) -> None:
        Placement(EngineOptions(tensor_parallel_size=2, **options), torch.device(device))

    with pytest.raises(StartupError, match="--tensor-parallel-size 2 does not go together with --load-8bit"):
        place("cpu", weight_bits=8)
    with pytest.raises(StartupError, match="--tensor-parallel-size 2 is for --device cuda"):
        place("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(StartupError, match="--tensor-parallel-size 2: this machine has 0"):
        Placement(EngineOptions(tensor_parallel_size=2), torch.device("cuda"))
