"""How much memory a model needs, and how much there is."""

import glob
import math
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import psutil

from cli.stack import Model
from cli.supervisor import Service

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
NO_WEIGHTS = ("optimizer.bin", "optimizer.pt", "scheduler.pt", "training_args.bin")
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
BESIDE_WEIGHTS = 1.2  # for keys and values, and what a step needs
PROCESS = 2**30  # bytes of a process with its libraries
UTILIZATION = 0.9  # of a GPU, by default
MIB = 2**20
VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as nvidia-smi counts them
# Flags that multiply the GPUs that a worker takes.
PARALLEL = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "num-gpus")


def weights_of(path: str | None) -> int:
    """Bytes; 0 of what is not on this disk."""
    if path is None:
        return 0
    place = Path(path)
    if place.is_file():
        part = SPLIT.search(place.name)
        files = (
            [place] if part is None else list(place.parent.glob(f"{glob.escape(place.name[: part.start()])}-*-of-*"))
        )
    else:
        found = [file for file in (place if place.is_dir() else _from_hub(path)).glob("*") if file.suffix in WEIGHTS]
        # The same weights may be there in several formats, of which the first is read.
        kinds = [[file for file in found if file.suffix == suffix] for suffix in WEIGHTS]
        files = next((kind for kind in kinds if kind), [])
    return sum(file.stat().st_size for file in files if file.exists() and file.name not in NO_WEIGHTS)


def _from_hub(id: str) -> Path:
    """Where it lies, if it has been loaded before."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(id, local_files_only=True))
    except Exception:  # it is none, it is not there, the library is not
        return Path(os.devnull)


def need_of(model: Model) -> int:
    """A guess, in bytes. On GPUs most engines take their part of them, whatever the model."""
    if (gpus := gpus_of(model)) and not (model.path or "").endswith(".gguf"):
        part = _told(model, "gpu-memory-utilization")
        return int(float(part or UTILIZATION) * _size_of_gpu()) * gpus
    return int(weights_of(model.path) * BESIDE_WEIGHTS) + PROCESS if model.path else 0


def gpus_of(model: Model) -> int:
    """How many it takes; 0: it runs elsewhere."""
    if model.path is None or _told(model, "device") in ("cpu", "mps") or _size_of_gpu() == 0:
        return 0
    return math.prod(int(found) for name in PARALLEL if (found := _told(model, name) or "").isdecimal() and int(found))


def _told(model: Model, flag: str) -> str | None:
    """A flag, or the variable that its worker reads in place of it."""
    return model.flag(flag) or os.environ.get(f"TOKENBUS_{flag.replace('-', '_').upper()}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs: on which GPUs; none: wherever it would by itself."""

    gpus: tuple[str, ...] = ()

    @classmethod
    def of(cls, service: Service) -> "Place":
        return cls(tuple(filter(None, service.environment.get(VISIBLE, "").split(","))))

    def given_to(self, service: Service) -> Service:
        if not self.gpus:
            return service
        return replace(service, environment={**service.environment, **ORDER, VISIBLE: ",".join(self.gpus)})

    def shares(self, need: int) -> dict[str, int]:
        """Bytes that are needed, by GPU; by "" where none is named."""
        parts = self.gpus or ("",)
        return dict.fromkeys(parts, need // len(parts))


Freed = Mapping[str, int]  # bytes that would be free besides, by GPU, and by "" of what is on none


class Memory:
    """budget: bytes for all models that are loaded on demand; None: what is free."""

    def __init__(self, budget: int | None) -> None:
        self._budget = budget

    @property
    def is_measured(self) -> bool:
        return self._budget is None

    def room(self, model: Model, need: int, taken: int, freed: Freed) -> Place | None:
        """Where there is room for it; None: nowhere. taken: what the others need that are loaded, with what would be
        free. May take a second."""
        if self._budget is not None and taken - sum(freed.values()) + need > self._budget:
            return None
        count = gpus_of(model)
        gpus = _freest(_gpus() if count else [], count, freed)
        place = Place(tuple(gpu.id for gpu in gpus))
        if self._budget is not None:
            return place
        if not count:
            return place if need <= psutil.virtual_memory().available + freed.get("", 0) else None
        share = need // count
        return place if all(share <= gpu.free + freed.get(gpu.id, 0) for gpu in gpus) else None


@dataclass(frozen=True, slots=True)
class Gpu:
    """id: as CUDA_VISIBLE_DEVICES names it. free, total: bytes."""

    id: str
    free: int
    total: int


def deal(models: Iterable[Model]) -> dict[str, Place]:
    """Places for those that are loaded at once, by name, whether there is room or not. May take a second."""
    counts = {model: gpus_of(model) for model in models}
    gpus = _gpus() if any(counts.values()) else []
    freed, places = Counter[str](), {}
    for model, count in counts.items():
        place = Place(tuple(gpu.id for gpu in _freest(gpus, count, freed)))
        freed.subtract(place.shares(need_of(model)))
        places[model.name] = place
    return places


def _freest(gpus: Sequence[Gpu], count: int, freed: Freed) -> list[Gpu]:
    """So many of them, in their order. None where there are fewer: the worker says so."""
    chosen = sorted(gpus, key=lambda gpu: gpu.free + freed.get(gpu.id, 0), reverse=True)[:count]
    return [gpu for gpu in gpus if gpu in chosen] if len(chosen) == count else []


@cache
def _size_of_gpu() -> int:
    """0: there is none."""
    return next((gpu.total for gpu in _gpus()), 0)


def _gpus() -> list[Gpu]:
    """That workers see. Where nobody knows, none: the worker will."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = re.findall(r"^(\d+), (\S+), (\d+), (\d+)$", done.stdout, re.MULTILINE)
    visible = os.environ.get(VISIBLE)
    ids = [row[0] for row in rows] if visible is None else [id.strip() for id in visible.split(",")]
    found = {id: row for id in ids for row in rows if id and (id == row[0] or row[1].startswith(id))}
    return [Gpu(id, int(row[2]) * MIB, int(row[3]) * MIB) for id, row in found.items()]
