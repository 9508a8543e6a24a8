"""How probable the tokens of a prompt or a completion were, and which others were.

All of it is of the model's own distribution: before penalties, bias, grammar, temperature and truncation.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llguidance import LLTokenizer
from tokenizers import Tokenizer

from shared.messages import Logprob, TokenLogprob

if TYPE_CHECKING:
    from torch import Tensor

LEAST = -9999.0  # for what cannot come at all: JSON has no infinity


class Pieces:
    """The text of single tokens, with the space that a word begins with; a special token is what it is called."""

    def __init__(self, tokenizer: Tokenizer, tokens: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def __call__(self, token_id: int) -> tuple[str, list[int] | None]:
        """Text and, where they are not its UTF-8, bytes: a token can be a part of a character, or of several."""
        if token_id not in self._known:
            self._known[token_id] = self._read(token_id)
        return self._known[token_id]

    def _read(self, token_id: int) -> tuple[str, list[int] | None]:
        if self._tokenizer.id_to_token(token_id) is None:  # of a place in the logits that is no token
            return "", None
        raw = self._tokens.decode_bytes([token_id])
        try:
            return raw.decode(), None
        except UnicodeDecodeError:
            return raw.decode(errors="replace"), list(raw)


class Scores:
    """Log probabilities of one token in each row of float32 logits [rows, vocabulary], and of the row's most probable
    ones. They may still be on their way from a GPU when this returns, and are read when what came after them is there.
    """

    def __init__(self, logits: "Tensor", tops: Sequence[int], ids: "Tensor") -> None:
        """tops: how many of each row. ids: int64 [rows], where the logits are."""
        values = logits.log_softmax(dim=-1).clamp_min_(LEAST)
        best = values.topk(min(max(tops, default=0), logits.shape[1]), dim=-1)
        own = values.gather(1, ids.unsqueeze(1)).squeeze(1)
        self._tops = tops
        self._values, self._best_ids, self._best_values, self._broken = (
            part.to("cpu", non_blocking=own.is_cuda) for part in (own, best.indices, best.values, values.isnan().any())
        )

    @property
    def are_numbers(self) -> bool:
        return not bool(self._broken)

    def tokens(
        self, token_ids: Sequence[int], pieces: Pieces, ends: Sequence[bool] | None = None
    ) -> list[TokenLogprob]:
        """Of the rows' tokens. `ends`: those that end a reply and are no part of its text, and so have none."""
        values = self._values.tolist()
        self._best = list(zip(self._best_ids.tolist(), self._best_values.tolist(), strict=True))
        ends = [False] * len(values) if ends is None else ends
        return [
            self._token(row, token_id, value, pieces, is_end)
            for row, (token_id, value, is_end) in enumerate(zip(token_ids, values, ends, strict=True))
        ]

    def _token(self, row: int, token_id: int, value: float, pieces: Pieces, is_end: bool) -> TokenLogprob:
        best = list(zip(*self._best[row], strict=True))[: self._tops[row]]
        return scored_token(token_id, value, best, pieces, is_end)


def scored_token(
    token_id: int, value: float, best: Sequence[tuple[int, float]], pieces: Pieces, is_end: bool = False
) -> TokenLogprob:
    """`best`: the most probable ones, with their logprobs. `is_end`: it ends a reply, is no part of its text, and so
    has none."""

    def named(one: int) -> tuple[str, list[int] | None]:
        return ("", None) if is_end and one == token_id else pieces(one)

    top = [Logprob(named(one)[0], probable, named(one)[1]) for one, probable in best]
    text, raw = named(token_id)
    return TokenLogprob(text, value, raw, top)
