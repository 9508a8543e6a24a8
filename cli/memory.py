"""How much memory a model needs, and how much there is."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import psutil

from cli.stack import Model

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
BESIDE_WEIGHTS = 1.2  # for keys and values, and what a step needs
PROCESS = 2**30  # bytes of a process with its libraries
UTILIZATION = 0.9  # of a GPU, by default
MIB = 2**20


def weights_of(path: str | None) -> int:
    """Bytes; 0 of what is not on this disk."""
    if path is None or not Path(path).exists():
        return 0
    files = [Path(path)] if Path(path).is_file() else Path(path).iterdir()
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHTS and file.exists())


def need_of(model: Model) -> int:
    """A guess, in bytes. On a GPU most engines take their part of it, whatever the model."""
    if is_on_gpu(model) and not (model.path or "").endswith(".gguf"):
        part = model.flag("gpu-memory-utilization")
        return int(float(part or UTILIZATION) * _size_of_gpu())
    return int(weights_of(model.path) * BESIDE_WEIGHTS) + PROCESS if model.path else 0


class Memory:
    """budget: bytes for all models that are loaded on demand; None: what is free."""

    def __init__(self, budget: int | None) -> None:
        self._budget = budget

    @property
    def is_measured(self) -> bool:
        return self._budget is None

    def has_room(self, need: int, taken: int, beside: int, model: Model) -> bool:
        """taken: what the others need that are loaded, of which `beside` would be free. May take a second."""
        if self._budget is not None:
            return taken - beside + need <= self._budget
        if not is_on_gpu(model):
            return need <= psutil.virtual_memory().available + beside
        gpu = _gpu()
        return gpu is None or need <= gpu[0] + beside  # where nobody knows, the worker will


def is_on_gpu(model: Model) -> bool:
    if model.path is None or model.flag("device") in ("cpu", "mps"):
        return False
    return _size_of_gpu() > 0


@cache
def _size_of_gpu() -> int:
    gpu = _gpu()
    return 0 if gpu is None else gpu[1]


def _gpu() -> tuple[int, int] | None:
    """Bytes that are free, and in all, of the first GPU that workers see: the one that they take."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["nvidia-smi", f"--id={visible}", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    row = re.search(r"^(\d+), (\d+)$", done.stdout, re.MULTILINE)
    return (int(row[1]) * MIB, int(row[2]) * MIB) if row else None
