"""What a step on GPUs takes, in time and in memory, which is measured."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from worker.engines.kv_cache import Row
from worker.engines.staging import Work

NO_ROOM = "the GPU has no memory for a step beside the weights; try --load-8bit or --num-gpus 2"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a step."""

    seconds: float
    bytes: Mapping[torch.device, int]


def prompts(tokens: int, longest: int) -> list[Work]:
    """New rows with so many tokens in all."""
    return [(Row(), [1] * min(longest, tokens - at)) for at in range(0, tokens, longest)]


def cost_of(step: Callable[[], object], gpus: Iterable[torch.device]) -> Cost:
    gpus = list(gpus)
    torch.cuda.empty_cache()
    before = [torch.cuda.memory_allocated(gpu) for gpu in gpus]
    for gpu in gpus:
        torch.cuda.synchronize(gpu)
        torch.cuda.reset_peak_memory_stats(gpu)
    began = time.perf_counter()
    with torch.inference_mode():
        step()
    for gpu in gpus:
        torch.cuda.synchronize(gpu)
    seconds = time.perf_counter() - began
    needed = {gpu: torch.cuda.max_memory_allocated(gpu) - held for gpu, held in zip(gpus, before, strict=True)}
    return Cost(seconds, needed)
