"""Telling weights apart: workers with equal fingerprints may continue each other's sequences."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedModel

from worker.engines.placement import is_quantized

# Of a config: where it lay, what wrote it, and how it is computed. None of it changes what the model says.
NOISE = frozenset({"transformers_version", "dtype", "torch_dtype", "name_or_path", "use_cache"})


def fingerprint_of(
    config: dict[str, Any] | None,
    tokenizer: Any,
    model: PreTrainedModel,
    sizes: list[int],
    parsers: list[str],
    quantization: str | None,
) -> str:
    """16 hex digits. `sizes`: of the weight files, in bytes. The chat template counts, for it makes the prompt, and so
    do `parsers` that were named in place of those that it shows: they say what is a tool call. `quantization`: of
    weights that were quantized as they were loaded."""
    parts = {
        "config": _without_noise(config or {}),
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "template": tokenizer.chat_template,
        "sizes": sizes,
        **_tensors(model, quantization),
        **({"parsers": parsers} if parsers else {}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _tensors(model: PreTrainedModel, quantization: str | None) -> dict[str, Any]:
    if is_quantized(model):
        # Not the state_dict of the model: bitsandbytes 0.50 unpacks 4-bit weights for it that were packed for the CPU,
        # and the scales wrongly, so that the model computes nonsense ever after.
        return {"quantization": quantization}
    return {"tensors": sorted((name, list(tensor.shape)) for name, tensor in model.state_dict().items())}


def _without_noise(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_noise(inner) for key, inner in value.items() if key not in NOISE and not key.startswith("_")}
