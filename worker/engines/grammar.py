"""Grammars over one model's tokens: which token may come next in each sequence that has one."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from shared.errors import InvalidRequest
from shared.grammar import WRITTEN, compiled

PLAINLY = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
COMPILED = 64  # grammars kept, in case they come again


class Matcher:
    """Where one sequence is in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.at = matcher

    def push(self, token_id: int | None) -> None:
        """None: the end. Raises InvalidRequest: for a grammar that turns out to be too complex here, or for a token
        that it forbids, which only a resumed sequence could bring."""
        if token_id is not None:
            self.at.consume_token(token_id)
        if self.at.is_error():
            raise InvalidRequest(f"The reply cannot follow the grammar: {self.at.get_error().partition(chr(10))[0]}")

    @property
    def is_done(self) -> bool:
        """Nothing but the end can follow."""
        return bool(self.at.is_stopped())


def bytes_of_tokens(tokenizer: Tokenizer, vocabulary: int, eos_ids: frozenset[int]) -> LLTokenizer:
    """What each token stands for; takes 0.2 s and 40 MB for 49,152 of them. vocabulary: of the model's logits, which
    may have more places than there are tokens."""
    size = max(vocabulary, tokenizer.get_vocab_size())
    return LLTokenizer(tokenizer.to_str(), n_vocab=size, eos_token=sorted(eos_ids) or None)


class Grammars:
    """Compiles for one model. `matcher` is called beside the step thread, `forbidden` in it."""

    def __init__(self, tokens: LLTokenizer, threads: int = 1) -> None:
        self._tokens = tokens
        self._executor = LLExecutor(threads)
        self._words = -(-self._tokens.vocab_size // 32)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, grammar: str) -> Matcher:
        """At the grammar's beginning. Raises InvalidRequest."""
        if (known := self._compiled.get(grammar)) is None:
            known = self._compiled[grammar] = compiled(grammar, self._tokens)
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Matcher(known.deep_copy())

    def forbidden(self, batch: int, vocabulary: int, rows: Sequence[tuple[int, Matcher]]) -> NDArray[np.bool_]:
        """[batch, vocabulary]: the tokens that may not follow. Of a grammar that fails, the end alone may. One
        fill for the whole batch: each would wait for all of torch's threads."""
        bits = np.full((batch, self._words), -1, dtype=np.int32)
        matchers = [(matcher.at, row) for row, matcher in rows]
        self._executor.unsafe_compute_mask_ptr(matchers, bits.ctypes.data, self._words * 4, len(bits))
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=vocabulary, bitorder="little")
        return np.equal(allowed, 0)


def written_plainly(grammar: str) -> str:
    """As an older llguidance understands it, and in which it means the same to both: with a space after each separator
    and nowhere else. It knows no `json_allowed_escapes`, so that characters may be written as their codes, too."""
    told = json.loads(grammar)
    for part in told["grammars"]:
        if isinstance(schema := part.get("json_schema"), dict):
            part["json_schema"] = {**schema, "x-guidance": PLAINLY}
        elif "lark_grammar" in part:
            part["lark_grammar"] = part["lark_grammar"].replace(json.dumps(WRITTEN), json.dumps(PLAINLY))
    return json.dumps(told, ensure_ascii=False)


def as_lark(grammar: str) -> str:
    """A grammar in llguidance's JSON form as one text of Lark, for engines that pass on no other form."""
    first, *others = json.loads(grammar)["grammars"]
    text = _rule("start", first)
    for number, other in enumerate(others):
        name = f"grammar_{number}"
        text = text.replace(f"@{other['name']}", name) + "\n" + _rule(name, other)
    return text


def _rule(name: str, grammar: Mapping[str, Any]) -> str:
    if (schema := grammar.get("json_schema")) is not None:
        return f"{name}: %json {json.dumps(schema)}\n"
    lark = grammar["lark_grammar"]
    return str(lark) if name == "start" else f"{name}: %lark {{\n{lark}\n}}\n"
