"""How much a step computes and the cache holds: as much as the machine has time and memory for, which is measured."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from shared.errors import StartupError
from shared.messages import SamplingParams
from worker.engines.options import CPU_MEMORY_UTILIZATION
from worker.engines.packed_model import PackedModel
from worker.engines.plain_model import PlainModel
from worker.engines.sampling import Draw, sample
from worker.engines.step_cost import NO_ROOM
from worker.engines.tensor_parallel import DealtOutModel

Model = PackedModel | PlainModel | DealtOutModel
# Of a GPU's steps, in s: how long streams may wait for prompts, of which attention makes more where rows are long; and
# until somebody who comes or leaves is seen to.
PAUSE_S, LOOK_S = 0.05, 0.25
GPU_TOKENS = (8192, 2048, 512)  # of which the first keep any GPU busy; the others, where it has less memory
GRAIN = 256
# What takes most memory to draw from.
HARD = Draw(SamplingParams(seed=0, temperature=1.0, top_p=0.9, top_k=8, min_p=0.01), 0, 0)
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class StepBudget:
    """Tokens that one step computes, when nobody is being answered and when somebody is.

    The second bounds the pause that a long prompt makes in streams. At least half of it is for prompts.
    """

    alone: int
    beside: int


# SmolLM2-135M on one core: 64 tokens take 0.2 s at 85% of the speed of 512, which take 1.4 s.
ON_CPU = StepBudget(alone=256, beside=64)


def step_budget(model: Model) -> StepBudget:
    """Raises StartupError where a GPU has no memory for a step."""
    if model.device.type != "cuda":
        return ON_CPU
    for most in GPU_TOKENS:
        try:
            model.measure(most, 1)  # what is compiled or chosen is so in the first
            speed = most / model.measure(most, 1).seconds
        except torch.OutOfMemoryError:
            continue
        alone, beside = (max(GRAIN, int(speed * seconds) // GRAIN * GRAIN) for seconds in (LOOK_S, PAUSE_S))
        return StepBudget(min(alone, most), min(beside, most))
    raise StartupError(NO_ROOM)


def cache_tokens(model: Model, budget: StepBudget, slots: int, utilization: float) -> int:
    """That fit into what is left of the memory, and no more than can be of use. utilization: of a GPU's memory, for
    all. Raises StartupError where that is less than one sequence may have."""
    if model.device.type == "cuda":
        tokens = _fit_on_gpus(model, budget, slots, utilization)
    else:
        tokens = int(_free_memory() * CPU_MEMORY_UTILIZATION) // sum(model.bytes_per_token.values())
    if tokens <= model.max_model_len:  # a row has room for one more than it has
        raise StartupError(
            f"the memory that is left holds keys and values of {max(tokens, 0)} tokens, and one sequence may have "
            f"{model.max_model_len}; try --max-model-len"
        )
    return min(tokens, slots * (model.max_model_len + 1))


def _free_memory() -> int:
    """Bytes; within a container, of what it may have."""
    free = psutil.virtual_memory().available
    try:
        most, used = ((CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
        return min(free, int(most) - int(used))
    except (OSError, ValueError):  # no cgroup of the second version, or one without a limit: "max"
        return free


def _fit_on_gpus(model: Model, budget: StepBudget, slots: int, utilization: float) -> int:
    """Beside the weights and what the largest steps need: one that is launched, and those that are graphs. Of several
    GPUs each has the same tokens, so that the one with the least room for its layers decides."""

    def draw(logits: Tensor) -> None:
        sample(logits, [HARD] * len(logits))

    try:
        costs = [model.measure(budget.alone, slots, draw)]
        if model.has_graphs:
            costs.append(model.measure(budget.beside, slots))
    except torch.OutOfMemoryError:
        raise StartupError(NO_ROOM) from None
    lacking = model.lacking() if isinstance(model, DealtOutModel) else 0
    tokens = []
    for gpu, bytes_per_token in model.bytes_per_token.items():
        free, total = torch.cuda.mem_get_info(gpu)
        needed = sum(cost.bytes[gpu] for cost in costs)
        tokens.append(int(free - lacking - needed - total * (1 - utilization)) // bytes_per_token)
    return min(tokens)
