"""Several linear layers over one input as one matrix product: the first of them computes all, and the others, which the
model calls after it, take their parts. A GPU reads weights faster in one piece."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # as models call them, and in this order


class _First(nn.Module):
    def __init__(self, linears: list[nn.Linear], rest: list[Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat(tuple(linear.weight for linear in linears)), requires_grad=False)
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = nn.Parameter(torch.cat(tuple(biases)), requires_grad=False) if biases else None
        self._sizes = [linear.out_features for linear in linears]
        self._rest = rest

    def forward(self, inputs: Tensor) -> Tensor:
        made = nn.functional.linear(inputs, self.weight, self.bias)
        first: Tensor
        first, *rest = torch.split(made, self._sizes, dim=-1)
        self._rest.extend(reversed(rest))
        return first


class _Next(nn.Module):
    def __init__(self, rest: list[Tensor]) -> None:
        super().__init__()
        self._rest = rest

    def forward(self, _: Tensor) -> Tensor:
        return self._rest.pop()


def stack(model: nn.Module) -> None:
    """In place. Layers that are no plain nn.Linear, quantized ones for instance, stay as they are."""
    for module, names in list(_stackable(model)):
        linears: list[nn.Linear] = [getattr(module, name) for name in names]
        rest: list[Tensor] = []
        setattr(module, names[0], _First(linears, rest))
        for name in names[1:]:
            setattr(module, name, _Next(rest))


def _stackable(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    for module in model.modules():
        for names in TOGETHER:
            linears = [getattr(module, name, None) for name in names]
            alike = {(linear.in_features, linear.bias is None) for linear in linears if type(linear) is nn.Linear}
            if len(alike) == 1 and all(type(linear) is nn.Linear for linear in linears):
                yield module, names
