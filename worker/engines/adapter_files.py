"""LoRA adapters as peft saves them: what is in their files, and which of them this project can serve."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import StartupError, one_line

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
WHOLE = ".base_layer.weight"  # which peft saves too of what it takes for an embedding, as a head tied to one
# Ways of beginning a training that leave the model's own weights as they are; pissa, olora and others change them.
BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
# Of peft's LoraConfig: what makes of two matrices more than their product.
OTHER_KINDS = ("use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "layer_replication", "alora_invocation_tokens")


def fingerprint_of_adapter(base: str, folder: str) -> str:
    """16 hex digits: of the model and of all that the adapter adds to it."""
    digest = hashlib.sha256(base.encode())
    for file in _files(folder):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def rank_of(folder: str) -> int:
    """The largest of its ranks."""
    config = config_of(folder)
    return int(max(_numbers(folder, config, "r", "rank_pattern")))


def _numbers(folder: str, config: dict[str, Any], name: str, patterns: str) -> list[int | float]:
    """Of all modules, and those of some. Raises StartupError."""
    others = config.get(patterns) or {}
    found = [config.get(name, 8), *(others.values() if isinstance(others, dict) else (None,))]
    if not all(isinstance(number, int | float) and 0 < number < float("inf") for number in found):
        raise StartupError(f"--lora-modules: {folder}: {name} or {patterns} are no numbers")
    return found


def config_of(folder: str) -> dict[str, Any]:
    """Raises StartupError for a folder without a LoRA adapter, and for a kind of LoRA that is not served."""
    file = Path(folder).expanduser() / CONFIG
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except OSError as error:
        raise StartupError(f"--lora-modules: {file}: {error.strerror}") from None
    except ValueError:
        raise StartupError(f"--lora-modules: {file} is no JSON") from None
    if not isinstance(config, dict):
        raise StartupError(f"--lora-modules: {file} is no JSON object")
    if config.get("peft_type") != "LORA":
        raise StartupError(f"--lora-modules: {folder} holds no LoRA adapter ({config.get('peft_type')})")
    if other := next((name for name in OTHER_KINDS if config.get(name)), None):
        raise StartupError(f"--lora-modules: {folder}: {other} is not supported")
    if (beginning := config.get("init_lora_weights")) not in BEGINNINGS:
        raise StartupError(f"--lora-modules: {folder}: init_lora_weights {beginning!r} is not supported")
    _files(folder)
    return config


def _files(folder: str) -> list[Path]:
    place = Path(folder).expanduser()
    weights = [place / name for name in WEIGHTS if (place / name).is_file()]
    if not weights:
        raise StartupError(f"--lora-modules: {folder} holds no {' or '.join(WEIGHTS)}")
    return [place / CONFIG, *weights]


def matrices(folder: str) -> Iterator[tuple[str, Any, Any, float]]:
    """Of each module, by its path in the model: A [rank, in], B [out, rank], and what their product is scaled by.
    Raises StartupError."""
    try:
        from peft import LoraConfig
        from peft.utils import load_peft_weights
        from peft.utils.other import get_pattern_key
    except ModuleNotFoundError:
        raise StartupError("--lora-modules needs the library 'peft': pip install 'tokenbus[transformers]'") from None

    told = config_of(folder)
    _numbers(folder, told, "r", "rank_pattern")
    _numbers(folder, told, "lora_alpha", "alpha_pattern")
    try:
        config = LoraConfig.from_pretrained(str(Path(folder).expanduser()))
        tensors = load_peft_weights(str(Path(folder).expanduser()), device="cpu")
    except Exception as error:  # whatever a file that is not what it should be makes of its readers
        raise StartupError(f"--lora-modules: cannot read {folder}: {one_line(error)}") from error
    if not tensors:
        raise StartupError(f"--lora-modules: {folder} holds no weights")
    patterns = config.alpha_pattern or {}
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if name.endswith(WHOLE) and name.replace(WHOLE, ".lora_A.weight") in tensors:
            module = name.removeprefix("base_model.model.").removesuffix(WHOLE)
            why = f"it holds the whole of {module} too; save it with save_embedding_layers=False"
            raise StartupError(f"--lora-modules: {folder}: {why}")
        if match is None or tensor.dim() != 2:
            raise StartupError(f"--lora-modules: {folder}: {name} is not supported: only linear layers are")
        found.setdefault(match["module"], {})[match["side"]] = tensor
    for module, sides in found.items():
        if len(sides) < 2:
            raise StartupError(f"--lora-modules: {folder}: of {module} one half is missing")
        rank = sides["A"].shape[0]
        try:
            alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
        except re.error as error:
            raise StartupError(f"--lora-modules: {folder}: alpha_pattern: {error}") from None
        yield module, sides["A"], sides["B"], alpha / (rank**0.5 if config.use_rslora else rank)
