"""LoRA adapters over one set of weights: each token of a step is computed with the adapter of its sequence.

The matrices of all adapters lie side by side, so that two products of the whole step compute them all, and a mask
leaves each token its own: no token is gathered, and the step is the same for a CUDA graph whoever is in it. It costs
each token the ranks of all adapters, which are few beside a layer's width.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import StartupError
from worker.engines.adapter_files import matrices

Matrices = tuple[int, Tensor, Tensor]  # whose, A, and B with its scale


class Adapters:
    def __init__(self, modules: Sequence[tuple[str, str]]) -> None:
        """modules: names and folders; the first is number 1. Raises StartupError."""
        self._found: dict[str, list[Matrices]] = defaultdict(list)
        ranks = [0] * len(modules)
        for number, (_, folder) in enumerate(modules):
            for path, down, up, scale in matrices(folder):
                self._found[path].append((number, down.float(), up.float() * scale))
                ranks[number] = max(ranks[number], len(down))
        self._ranks = ranks
        self._names = [name for name, _ in modules]
        self._mask: Tensor | None = None  # [tokens or 1, all ranks]; None: nobody in this step has an adapter

    def attach(self, model: nn.Module, run: Callable[[], object]) -> None:
        """To a model whose layers will not be replaced any more. run: computes something with an adapter. Raises
        StartupError for a model that does not fit."""
        called: set[str] = set()
        counting = []
        weight = next(model.parameters())
        owners = [number for number, rank in enumerate(self._ranks, 1) for _ in range(rank)]
        self._owners = torch.tensor(owners, device=weight.device)
        self._dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        for path, parts in self._found.items():
            try:
                module = model.get_submodule(path)
            except AttributeError:
                names = ", ".join(self._names[number] for number, _, _ in parts)
                raise StartupError(f"--lora-modules: {names}: the model has no {path}") from None
            down, up = (side.to(weight.device, self._dtype) for side in self._side_by_side(parts))
            module.register_forward_hook(_Hook(self, down, up))
            counting.append(module.register_forward_hook(partial(_count, called, path)))
        try:
            run()
        except Exception as error:  # a layer that sees a part of the tokens, an expert for instance
            raise StartupError(f"--lora-modules: this model cannot have them: {error}") from error
        for count in counting:
            count.remove()
        if missed := sorted(set(self._found) - called):  # some models read a layer's weights themselves
            raise StartupError(f"--lora-modules: the model does not call its {missed[0]}")

    def choose(self, numbers: Tensor) -> None:
        """numbers: of each token its adapter's, or one for all; 0: none. On a GPU nobody waits to see whether there are
        any."""
        if not numbers.is_cuda and not numbers.any():
            self._mask = None
        else:
            self._mask = (numbers.unsqueeze(-1) == self._owners).to(self._dtype)

    def _side_by_side(self, parts: list[Matrices]) -> tuple[Tensor, Tensor]:
        """A [all ranks, in] and B [out, all ranks], with zeros where an adapter leaves this layer alone."""
        _, first_down, first_up = parts[0]
        down = torch.zeros(sum(self._ranks), first_down.shape[1])
        up = torch.zeros(first_up.shape[0], sum(self._ranks))
        for number, own_down, own_up in parts:
            if (own_down.shape[1], own_up.shape[0]) != (down.shape[1], up.shape[0]):
                raise StartupError("--lora-modules: the adapters are of models of different sizes")
            start = sum(self._ranks[:number])
            down[start : start + len(own_down)] = own_down
            up[:, start : start + len(own_down)] = own_up
        return down, up


def _count(called: set[str], path: str, *_: Any) -> None:
    called.add(path)


class _Hook:
    def __init__(self, adapters: Adapters, down: Tensor, up: Tensor) -> None:
        self._adapters = adapters
        self._down = down
        self._up = up

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        mask = self._adapters._mask
        if mask is None:
            return None
        part = nn.functional.linear(inputs[0].to(self._down.dtype), self._down) * mask
        return output + nn.functional.linear(part, self._up).to(output.dtype)
