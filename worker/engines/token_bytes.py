"""Tokens by what they stand for, where only their text and their number is known."""

from collections.abc import Iterator
from functools import cached_property

from llguidance import LLTokenizer

NO_TEXT = b"\x80"  # a character's second byte, by itself


class TokenBytes:
    def __init__(self, tokens: LLTokenizer, vocabulary: int) -> None:
        self._tokens = tokens
        self._vocabulary = vocabulary

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        """Takes 0.1 s for 49,152 of them."""
        ids: dict[bytes, int] = {}
        for token_id in range(self._vocabulary):
            ids.setdefault(self._tokens.decode_bytes([token_id]), token_id)
        return ids

    def ids_before(self, last: int, text: bytes, count: int) -> list[int]:
        """So many tokens that, with `last` after them, say the text: as the tokenizer would have it, or else any. Of
        what is no text (a model may say half of a character and go on) nobody knows the bytes any more: it is said by
        others that are none."""
        end = self._tokens.decode_bytes([last])
        before = text[: len(text) - len(end)] if text.endswith(end) else text
        ids: list[int] = self._tokens.tokenize_bytes(before)
        if len(ids) != count:
            ids = next(self._split(before, count), [])
        return ids if len(ids) == count else [self._ids.get(NO_TEXT, last)] * count

    def _split(self, text: bytes, count: int) -> Iterator[list[int]]:
        if count == 0 or len(text) < count:
            if not text and not count:
                yield []
            return
        for end in range(len(text) - count + 1, 0, -1):
            if (first := self._ids.get(text[:end])) is not None:
                for rest in self._split(text[end:], count - 1):
                    yield [first, *rest]
