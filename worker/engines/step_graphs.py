"""Steps as CUDA graphs: the GPU does not wait for Python between two kernels.

There is one for each number of rows, in steps of so many, that have one token each; and one for each of a few numbers
of tokens, prompts among them, as long as launching them takes longer than computing them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config as inductor

from worker.engines.kv_cache import Row
from worker.engines.staging import PIECE, Shape, Staging, Step, Work, shape_for_kernels

Compute = Callable[[Tensor, Shape, Tensor | None, int], Tensor]
PROMPT_TOKENS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)
FEW_ROWS = 8  # singles, and prompts


def row_counts(most: int) -> list[int]:
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, most + 32, 32)]
    return [*(size for size in sizes if size < most), most]


def shapes(most: int, most_tokens: int) -> list[Shape]:
    """Of steps with up to so many rows, and so many tokens where some are prompts. The smallest first."""
    single = [Shape(size, size, 0, size) for size in row_counts(most)]
    rows = sorted({min(FEW_ROWS, most), most})
    sizes = [*(size for size in PROMPT_TOKENS if size < most_tokens), most_tokens]
    return single + [
        Shape(tokens, some, -(-tokens // PIECE) + some, min(2 * some, most)) for some in rows for tokens in sizes
    ]


class StepGraphs:
    def __init__(
        self, compute: Compute, logits: Tensor, staging: Staging, longest: int, most_tokens: int, progress: Any
    ) -> None:
        """compute: of the numbers of a step, its shape, tokens that were drawn before, and the longest row. logits:
        [rows at most, vocabulary], where each step leaves its own. most_tokens: of a step with prompts."""
        self._staging = staging
        self._logits = logits
        self._shapes = shapes(len(logits), most_tokens)
        largest = max(sum(shape.sizes) for shape in self._shapes)
        self._numbers = torch.zeros(largest, dtype=torch.int64, device=logits.device)
        self._drawn = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(logits.device)  # type: ignore[no-untyped-call]
        for shape in progress(list(reversed(self._shapes))):  # the largest first: the others fit into its memory
            self._graphs[shape] = self._captured(compute, shape, longest, pool, stream)

    def _captured(
        self, compute: Compute, shape: Shape, longest: int, pool: Any, stream: torch.cuda.Stream
    ) -> torch.cuda.CUDAGraph:
        numbers = self._numbers[: sum(shape.sizes)]
        numbers.copy_(torch.from_numpy(self._staging.gather([(Row(), [0])], [0], shape)))

        def run() -> None:
            self._logits[: shape.wanted].copy_(compute(numbers, shape, self._drawn, longest))

        stream.wait_stream(torch.cuda.current_stream())
        # Products with one row are sums to the compiler, if it may tune them: 7% of a step of a 7B for 13 s of a start.
        with torch.cuda.stream(stream), inductor.patch(coordinate_descent_tuning=shape.tokens == 1):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            run()
        return graph

    def shape_of(self, work: Sequence[Work], wanted: int) -> Shape | None:
        """Of the graph that does this work; None: there is none."""
        exact = shape_for_kernels(work, wanted)
        return next(
            (
                shape
                for shape in self._shapes
                if shape.tokens >= exact.tokens
                and shape.singles >= exact.singles
                and shape.pieces >= exact.pieces
                and shape.wanted >= exact.wanted
                and bool(shape.pieces) is bool(exact.pieces)
            ),
            None,
        )

    def run(self, step: Step, drawn: Tensor | None) -> Tensor:
        """Logits [step.wanted, vocabulary], until the next step overwrites them."""
        self._numbers[: len(step.numbers)].copy_(torch.from_numpy(step.numbers), non_blocking=True)
        if drawn is not None:
            self._drawn[: len(drawn)].copy_(drawn)
        self._graphs[step.shape].replay()
        return self._logits[: step.wanted]
