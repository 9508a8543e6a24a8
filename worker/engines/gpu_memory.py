"""How much of a GPU's memory is left for caches."""

from collections.abc import Callable

import torch
from torch import Tensor


def step_memory(device: torch.device, step: Callable[[], Tensor]) -> int:
    """Bytes that a step, which returns logits, needs beside what is there already, and a draw from them."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        before = torch.cuda.memory_allocated(device)
        logits = step()
        sample_like = logits.float().softmax(dim=-1) + logits
        del logits, sample_like
    return torch.cuda.max_memory_allocated(device) - before


def memory_beside(device: torch.device, needed: int, utilization: float) -> int:
    """Bytes beside those that are needed, where so much of the GPU may be used in all."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(free - needed - total * (1 - utilization))
