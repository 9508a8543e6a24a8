"""In vLLM's own environment: what it is told, and what is refused before it has begun."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import StartupError
from worker.engines.options import EngineOptions
from worker.engines.vllm_impl import VllmStreamer, _engine_args


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine_flags": ("--no-such-flag",)}, "vLLM's flags: unrecognized arguments: --no-such-flag"),
        ({"max_model_len": 9000}, "--max-model-len 9000 is more than the 4096 tokens that the model can hold"),
    ],
    ids=["an unknown flag", "too long"],
)
def test_it_says_why(llama_for_vllm: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(StartupError, match=f"^{said}$"):
        VllmStreamer(EngineOptions(model_path=str(llama_for_vllm), dtype="float32", threads=1, **options)).load()


def test_without_a_hub_nothing_is_looked_up(llama_for_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's arguments look for their model, or for their default one, the moment they are made."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert _engine_args(EngineOptions(model_path=str(llama_for_vllm))).model == str(llama_for_vllm)
