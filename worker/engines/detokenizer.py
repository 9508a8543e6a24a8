"""Token ids to text, one at a time."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """The text that each new token completes.

    A character that is split over tokens comes out whole, with the last of them; one that is never completed does
    not come out at all. `context`: the ids that the text continues, so that a first word keeps its space. `hidden`:
    those whose text is no part of it.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), hidden: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        seen = [token_id for token_id in context if token_id not in hidden]
        # A stream whose context breaks off within a character would give out the context too.
        whole = not tokenizer.decode(seen, skip_special_tokens=False).endswith("\ufffd")
        self._stream = DecodeStream(ids=seen if whole else [], skip_special_tokens=False)

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        return self._stream.step(self._tokenizer, token_id) or ""


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special)
