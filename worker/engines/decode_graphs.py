"""Steps that compute one token for each row, as CUDA graphs: the GPU does not wait for Python between two kernels."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.engines.kv_cache import KeyValueCache
from worker.engines.packed_attention import Flash, Packed
from worker.engines.staging import BUFFERS, Work

Call = Callable[[Packed, Tensor, Tensor, Tensor, Tensor], Tensor]
IDS, POSITIONS, SLOTS, STARTS, LENGTHS, FIELDS = range(6)


def buckets(most: int) -> list[int]:
    """Numbers of rows that there are graphs for: a batch is filled up to the next."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, most + 32, 32)]
    return [*(size for size in sizes if size < most), most]


class DecodeGraphs:
    def __init__(self, call: Call, cache: KeyValueCache, most: int, longest: int, progress: Any) -> None:
        self._cache = cache
        self._buckets = buckets(most)
        self._turns = count()
        device = cache.device
        self._pinned = torch.zeros((BUFFERS, FIELDS, most), dtype=torch.int64, pin_memory=True)
        self._numbers = torch.zeros((FIELDS, most), dtype=torch.int64, device=device)
        self._drawn = torch.zeros(most, dtype=torch.int64, device=device)
        self._numbers[LENGTHS] = 1
        self._places = torch.arange(most, device=device)
        self._new_starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        for size in progress(list(reversed(self._buckets))):  # the largest first: the others fit into its memory
            self._graphs[size] = self._captured(call, size, longest, pool, stream)

    def _captured(
        self, call: Call, size: int, longest: int, pool: Any, stream: torch.cuda.Stream
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        def step() -> Tensor:
            ids, positions, slots, starts, lengths = self._numbers[:, :size].unbind()
            ids = torch.where(ids < 0, self._drawn[(-1 - ids).clamp_min(0)], ids)
            key_starts = torch.nn.functional.pad(starts, (0, 1)).int()
            flash = Flash(self._new_starts[: size + 1], key_starts, lengths.int(), 1, longest)
            return call(Packed(flash=flash), ids, positions, slots, self._places[:size])

        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            logits = step()
        return graph, logits

    def fit(self, work: Sequence[Work]) -> bool:
        return len(work) <= self._buckets[-1] and all(len(ids) == 1 for _, ids in work)

    def run(self, work: Sequence[Work], drawn: Tensor | None) -> Tensor:
        """Logits [rows, vocabulary], until the next step overwrites them."""
        rows = len(work)
        size = next(size for size in self._buckets if size >= rows)
        pinned = self._pinned[next(self._turns) % BUFFERS]
        numbers = pinned.numpy()
        numbers[:, rows:size] = 0  # those that fill it up write where nobody reads
        numbers[LENGTHS, rows:size] = 1
        numbers[IDS, :rows] = [ids[0] for _, ids in work]
        numbers[POSITIONS, :rows] = [row.length for row, _ in work]
        numbers[STARTS, :rows] = [row.start for row, _ in work]
        np.add(numbers[STARTS, :rows], numbers[POSITIONS, :rows], out=numbers[SLOTS, :rows])
        np.add(numbers[POSITIONS, :rows], 1, out=numbers[LENGTHS, :rows])
        self._numbers.copy_(pinned, non_blocking=True)
        if drawn is not None:
            self._drawn[: len(drawn)].copy_(drawn)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:rows]
