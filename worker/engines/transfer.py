"""Small numbers on their way to the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Nobody waits for them, nor for what still runs there, as one would without pinned memory."""
    numbers = torch.tensor(values, dtype=dtype)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)
