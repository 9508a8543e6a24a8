"""The parts of a model's linear layers that one of several processes has, as transformers' tp_plan deals them out.

transformers reads a process's own parts alone, as DTensors, and converts to and from those at every call. Here they
become plain modules, which can be stacked, compiled and captured like those of a whole model.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

from shared.errors import StartupError

# Of transformers' plans: what is done here with linear layers, and what is left to others.
STYLES = frozenset(("colwise", "colwise_gather_output", "rowwise", "rowwise_split_input")) | frozenset(
    ("replicated_with_grad_allreduce", "embedding_rowwise", "embedding_colwise", "replicate")
)


def check_plan(config: Any, processes: int) -> None:
    """Raises StartupError where a text model cannot be dealt out so, by its plan or its heads."""
    plan = getattr(config, "base_model_tp_plan", None)
    if not plan:
        raise StartupError(f"--tensor-parallel-size: transformers has no tp_plan for {config.model_type!r}")
    if unknown := set(plan.values()) - STYLES:
        raise StartupError(f"--tensor-parallel-size: the tp_plan of {config.model_type!r} has {min(unknown)!r}")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    is_dealt_out = any(name.endswith(".k_proj") and style == "colwise" for name, style in plan.items())
    if is_dealt_out and heads % processes:
        raise StartupError(f"--tensor-parallel-size {processes}: its {heads} heads of keys cannot be dealt out evenly")


@torch.library.custom_op("tokenbus::add_parts", mutates_args=("parts",))
def add_parts(parts: Tensor) -> None:
    """In place, those of all processes."""
    dist.all_reduce(parts)


@torch.library.custom_op("tokenbus::join_parts", mutates_args=())
def join_parts(part: Tensor, processes: int) -> Tensor:
    """[..., size] of each process -> [..., processes * size]."""
    parts = part.new_empty((processes, *part.shape))
    dist.all_gather(list(parts), part.contiguous())
    return parts.movedim(0, -2).flatten(-2)


@join_parts.register_fake
def _(part: Tensor, processes: int) -> Tensor:
    return part.new_empty((*part.shape[:-1], processes * part.shape[-1]))


class _Joined(nn.Module):
    """All outputs of a linear layer, each of which one process computes."""

    def __init__(self, weight: Tensor, bias: Tensor | None, outputs: int) -> None:
        """outputs: in all. Where they do not come out even, more are computed, and cut off."""
        super().__init__()
        self._processes = dist.get_world_size()
        self._outputs = outputs
        missing = -(-outputs // self._processes) - weight.shape[0]
        self.weight = _constant(pad(weight, (0, 0, 0, missing)))
        self.bias = None if bias is None else _constant(pad(bias, (0, missing)))

    def forward(self, inputs: Tensor) -> Tensor:
        joined: Tensor = join_parts(linear(inputs, self.weight, self.bias), self._processes)
        return joined[..., : self._outputs]


class _Added(nn.Module):
    """All outputs of a linear layer, to which each process adds what its part of the inputs makes."""

    def __init__(self, weight: Tensor, bias: Tensor | None, inputs: int, *, split: bool) -> None:
        """inputs: in all. split: they come whole, and each process takes its own."""
        super().__init__()
        self.weight = _constant(weight)
        self.bias = None if bias is None else _constant(bias)
        first = min(inputs, dist.get_rank() * -(-inputs // dist.get_world_size()))
        self._own = slice(first, first + weight.shape[1]) if split else slice(None)

    def forward(self, inputs: Tensor) -> Tensor:
        made = linear(inputs[..., self._own], self.weight)
        add_parts(made)
        return made if self.bias is None else made + self.bias


def make_plain(model: PreTrainedModel) -> None:
    """In place, if it is dealt out; all processes do it together. Raises ValueError for a plan that is unknown here."""
    plan: dict[str, str] = getattr(model, "tp_plan", None) or {}
    for name, module in list(_dealt_out(model)):
        module.__dict__.pop("forward", None)  # transformers' conversions
        style = plan.get(re.sub(r"\.\d+(?=\.)", ".*", name))
        if type(module) is nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _plain(module, style))
        elif isinstance(module, nn.Embedding):  # looking it up takes no time, adding up the parts would
            module.weight = _constant(module.weight.full_tensor())  # type: ignore[attr-defined]
        else:
            raise ValueError(f"its tp_plan has {style!r} for {type(module).__name__}")


def _plain(layer: nn.Linear, style: str | None) -> nn.Module:
    weight, bias = (None if one is None else _local(one) for one in (layer.weight, layer.bias))
    assert weight is not None
    match style:
        case "colwise":
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            made.weight, made.bias = _constant(weight), None if bias is None else _constant(bias)
            return made
        case "colwise_gather_output":
            return _Joined(weight, bias, layer.out_features)
        case "rowwise" | "rowwise_split_input":
            return _Added(weight, bias, layer.in_features, split=style == "rowwise_split_input")
    raise ValueError(f"its tp_plan has {style!r} for a linear layer")


def _dealt_out(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if any(hasattr(one, "to_local") for one in module.parameters(recurse=False)):
            yield name, module


def _local(parameter: Tensor) -> Tensor:
    """The part of a DTensor that is here; what is none is here as a whole."""
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach().contiguous()


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
