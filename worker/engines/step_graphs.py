"""Steps as CUDA graphs: the GPU does not wait for Python between two kernels.

There is one for each number of rows, in steps of so many, that have one token each; and one for each of a few numbers
of tokens, prompts among them, as long as launching them takes longer than computing them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from worker.engines.kv_cache import KeyValueCache, Row
from worker.engines.staging import Shape, Staging, Work

Step = Callable[[Tensor, Shape, Tensor | None, int, int], Tensor]
PROMPT_TOKENS = (64, 128, 256, 512, 1024)
FEW_ROWS = 4


def row_counts(most: int) -> list[int]:
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, most + 32, 32)]
    return [*(size for size in sizes if size < most), most]


def shapes(most: int) -> list[Shape]:
    """The smallest first."""
    single = [Shape(size, size, size) for size in row_counts(most)]
    rows = sorted({min(FEW_ROWS, most), most})
    return single + [Shape(tokens, some, some) for some in rows for tokens in PROMPT_TOKENS if tokens > some]


class StepGraphs:
    def __init__(
        self, step: Step, cache: KeyValueCache, staging: Staging, most_rows: int, longest: int, progress: Any
    ) -> None:
        """step: the numbers of a step, its shape, tokens that were drawn before, the most new tokens of a row, and the
        longest row."""
        self._staging = staging
        self._most = most_rows
        self._shapes = shapes(most_rows)
        largest = max(sum(shape.sizes) for shape in self._shapes)
        self._numbers = torch.zeros(largest, dtype=torch.int64, device=cache.device)
        self._drawn = torch.zeros(most_rows, dtype=torch.int64, device=cache.device)
        self._graphs: dict[Shape, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(cache.device)  # type: ignore[no-untyped-call]
        for shape in progress(list(reversed(self._shapes))):  # the largest first: the others fit into its memory
            self._graphs[shape] = self._captured(step, shape, longest, pool, stream)

    def _captured(
        self, step: Step, shape: Shape, longest: int, pool: Any, stream: torch.cuda.Stream
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        numbers = self._numbers[: sum(shape.sizes)]
        numbers.copy_(self._staging.gather([(Row(), [0])], [0], shape))
        most_new = 1 if shape.tokens == shape.rows else shape.tokens

        def run() -> Tensor:
            return step(numbers, shape, self._drawn, most_new, longest)

        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            logits = run()
        return graph, logits

    def shape_of(self, work: Sequence[Work], wanted: int) -> Shape | None:
        """Of the graph that does this work; None: there is none."""
        tokens, rows = sum(len(ids) for _, ids in work), len(work)
        single = tokens == rows
        return next(
            (
                shape
                for shape in self._shapes
                if shape.tokens >= tokens
                and shape.rows >= rows
                and shape.wanted >= wanted
                and (shape.tokens == shape.rows) is single
            ),
            None,
        )

    def run(self, shape: Shape, work: Sequence[Work], places: Sequence[int], drawn: Tensor | None) -> Tensor:
        """Logits [places, vocabulary], until the next step overwrites them."""
        numbers = self._staging.gather(work, places, shape)
        self._numbers[: len(numbers)].copy_(numbers, non_blocking=True)
        if drawn is not None:
            self._drawn[: len(drawn)].copy_(drawn)
        graph, logits = self._graphs[shape]
        graph.replay()
        return logits[: len(places)]
