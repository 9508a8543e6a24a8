"""Token ids to text, one at a time."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """The text that each new token completes.

    A character that is split over tokens comes out whole, with the last of them; one that is never completed does
    not come out at all. `context`: the ids that the text continues, so that a first word keeps its space.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # A stream whose context breaks off within a character would give out the context too.
        whole = not tokenizer.decode(context).endswith("\ufffd")
        self._stream = DecodeStream(ids=list(context) if whole else [], skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""
