"""Linear layers for the bfloat16 units of a CPU, with weights as oneDNN reads them: torch's own would bring them into
that order in every step."""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

TOKENS = 32  # that a step is likely to have
MEASURED_BYTES = 2**26  # of float32 weights: more than caches hold
MEASURED_TOKENS = (1, 8)


class _Linear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = _in_order(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return _product(inputs, self.weight, self.bias)


def _in_order(weight: Tensor) -> Tensor:
    ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, TOKENS)
    return ordered


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


def bring_into_order(model: nn.Module) -> None:
    """In place. Layers that are no plain nn.Linear stay as they are."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.weight.dtype is torch.bfloat16:
                setattr(module, name, _Linear(child))


def has_bfloat16() -> bool:
    """This CPU, and this torch."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def bfloat16_is_faster(outputs: int, inputs: int) -> bool:
    """Than float32, in products with weights [outputs, inputs] and few tokens."""
    if not has_bfloat16():
        return False
    weights = [torch.rand(outputs, inputs) for _ in range(max(1, MEASURED_BYTES // (4 * outputs * inputs)))]
    ordered = [_in_order(weight.bfloat16()) for weight in weights]
    for tokens in MEASURED_TOKENS:
        given = torch.rand(tokens, inputs)
        if _seconds(_product, given.bfloat16(), ordered) > _seconds(nn.functional.linear, given, weights):
            return False
    return True


@torch.inference_mode()
def _seconds(product: Callable[[Tensor, Tensor], Tensor], given: Tensor, weights: list[Tensor]) -> float:
    """The best of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for weight in weights:
            product(given, weight)
        times.append(time.perf_counter() - began)
    return min(times)
