"""What repetition, presence and frequency penalties take from the logits of many sequences at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.messages import SamplingParams
from worker.engines.transfer import sent

IN_PROMPT = 2**24  # beside how often a completion has a token, which is less
AT_ONCE = 32  # sequences: long ones take a megabyte each on the way


class Penalties:
    """A row for each sequence that pays for its tokens: its ids, and what of each token of the vocabulary it has.

    repetition: as in transformers, over prompt and completion; presence and frequency: as OpenAI's, over the completion
    alone.
    """

    def __init__(self, rows: int, longest: int, vocabulary: int, device: torch.device) -> None:
        self._ids = torch.zeros((rows, longest + 1), dtype=torch.int32, device=device)
        self._seen = torch.zeros((rows, vocabulary), dtype=torch.int32, device=device)
        self._lengths = [0] * rows
        self._free = list(range(rows))

    @staticmethod
    def asked_for(params: SamplingParams) -> bool:
        return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0

    def enter(self, prompt: Sequence[int], completion: Sequence[int]) -> int:
        """Its row, from its ids so far."""
        row = self._free.pop()
        ids = sent([*prompt, *completion], torch.int64, self._seen.device)
        self._ids[row, : len(ids)] = ids
        self._lengths[row] = len(ids)
        seen = self._seen[row].zero_()
        seen.index_fill_(0, ids[: len(prompt)], IN_PROMPT)
        seen.index_add_(0, ids[len(prompt) :], torch.ones_like(ids[len(prompt) :], dtype=torch.int32))
        return row

    def leave(self, row: int) -> None:
        self._free.append(row)

    def count(self, rows: Sequence[int], tokens: Tensor) -> None:
        """The next token of each row, int64 where its logits are; below 0: none."""
        tokens = tokens.clamp_min(0)
        row = sent(rows, torch.int64, tokens.device)
        self._ids[row, sent([self._lengths[one] for one in rows], torch.int64, tokens.device)] = tokens.int()
        self._seen.index_put_((row, tokens), torch.ones_like(tokens, dtype=torch.int32), accumulate=True)
        for one in rows:
            self._lengths[one] += 1

    def apply(
        self, logits: Tensor, places: Sequence[int], rows: Sequence[int], asked: Sequence[SamplingParams]
    ) -> None:
        """In place, to rows `places` of float32 [all, vocabulary], each by its own row here and its own parameters."""
        for first in range(0, len(places), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            self._apply(logits, places[part], rows[part], asked[part])

    def _apply(
        self, logits: Tensor, places: Sequence[int], rows: Sequence[int], asked: Sequence[SamplingParams]
    ) -> None:
        """To the logits of the ids that each has; of some more than once, which comes to the same."""
        lengths = [self._lengths[row] for row in rows]
        place, row, length = (
            sent(numbers, torch.int64, logits.device).unsqueeze(1) for numbers in (places, rows, lengths)
        )
        at = torch.arange(max(lengths), device=logits.device)
        ids = self._ids[row, torch.where(at < length, at, 0)].long()
        logits[place, ids] = _penalized(logits[place, ids], self._seen[row, ids], asked)


def _penalized(logits: Tensor, seen: Tensor, asked: Sequence[SamplingParams]) -> Tensor:
    """All [sequences, ids]."""

    def column(values: list[float]) -> Tensor:
        return sent(values, torch.float32, logits.device).unsqueeze(1)

    if any(one.repetition_penalty != 1.0 for one in asked):
        more = column([one.repetition_penalty for one in asked])
        less = column([1 / one.repetition_penalty for one in asked])
        logits = torch.where(seen > 0, logits * torch.where(logits < 0, more, less), logits)
    counts = seen & (IN_PROMPT - 1)
    if any(one.presence_penalty != 0.0 for one in asked):
        logits = logits - column([one.presence_penalty for one in asked]) * (counts > 0)
    if any(one.frequency_penalty != 0.0 for one in asked):
        logits = logits - column([one.frequency_penalty for one in asked]) * counts
    return logits
