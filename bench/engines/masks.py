"""`python -m bench.engines.masks`: what a grammar costs a step, by llguidance and, where it is installed, by xgrammar.

Both follow the same replies, token by token, over SmolLM2's vocabulary. A step of a row is its mask and its advance.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from llguidance import LLTokenizer
from rich.console import Console
from rich.table import Table

from cli.demo_models import CHAT
from shared.errors import StartupError
from shared.grammar import compiled, constraint
from shared.messages import Structured
from worker.engines.checkpoint import Checkpoint
from worker.engines.options import EngineOptions

Schema = dict[str, Any]

STRING, NUMBER = {"type": "string"}, {"type": "number"}


def _of(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


PERSON = _of(name=STRING, age={"type": "integer", "minimum": 0, "maximum": 150}, email=STRING)
ORDER = _of(
    id={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    status={"enum": ["new", "paid", "sent", "returned"]},
    lines={"type": "array", "items": _of(article=STRING, count={"type": "integer"}, price=NUMBER), "minItems": 1},
    note={"anyOf": [STRING, {"type": "null"}]},
)
TREE = {"$defs": {"node": _of(name=STRING, children={"type": "array", "items": {"$ref": "#/$defs/node"}})}}
NAMES = [f"function_number_{number}" for number in range(500)]

# Schemas, and replies that fit them.
REPLIES: dict[str, tuple[Schema, Any]] = {
    "an object of three": (PERSON, {"name": "Ada Lovelace", "age": 36, "email": "ada@example.org"}),
    "long text": (_of(text=STRING), {"text": "It was a dark and stormy night; the rain fell in torrents. " * 8}),
    "an order": (
        ORDER,
        {
            "id": "ABC-1234",
            "status": "paid",
            "lines": [{"article": f"pen no. {number}", "count": number, "price": 1.25} for number in range(6)],
            "note": "after six o'clock, please",
        },
    ),
    "a tree": (
        {**TREE, "$ref": "#/$defs/node"},
        {"name": "root", "children": [{"name": "a", "children": [{"name": "b", "children": []}]}] * 3},
    ),
    "one of 500 names": (_of(name={"enum": NAMES}), {"name": NAMES[317]}),
    "any JSON": ({"type": "object"}, {"a": [1, 2.5, None, True, {"b": "text of some length"}], "c": {"d": "e"}}),
}


class Follower(Protocol):
    """One row."""

    def mask(self) -> None: ...

    def push(self, token_id: int) -> bool:
        """Whether the grammar allows it."""
        ...


class Library(Protocol):
    name: str

    def compile(self, schema: Schema) -> Callable[[], Follower]: ...


class LLGuidance:
    name = "llguidance"

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokens = LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary)
        self._bits = np.zeros((1, -(-vocabulary // 32)), dtype=np.int32)

    def compile(self, schema: Schema) -> Callable[[], Follower]:
        matcher, bits = compiled(constraint(Structured("json", schema)), self._tokens), self._bits

        class Row:
            def __init__(self) -> None:
                self._at = matcher.deep_copy()

            def mask(self) -> None:
                self._at.unsafe_compute_mask_ptr(bits.ctypes.data, bits.shape[1] * 4)

            def push(self, token_id: int) -> bool:
                return bool(self._at.consume_token(token_id))

        return Row


class XGrammar:
    name = "xgrammar"

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        xgrammar = self._library = import_module(
            "xgrammar"
        )  # no dependency of ours: whoever wants to compare installs it
        names = [tokenizer.id_to_token(token_id) or "" for token_id in range(vocabulary)]
        info = xgrammar.TokenizerInfo(names, xgrammar.VocabType.BYTE_LEVEL, vocab_size=vocabulary, stop_token_ids=[2])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bits = xgrammar.allocate_token_bitmask(1, vocabulary)

    def compile(self, schema: Schema) -> Callable[[], Follower]:
        grammar, bits = self._compiler.compile_json_schema(json.dumps(schema)), self._bits
        library = self._library

        class Row:
            def __init__(self) -> None:
                self._at = library.GrammarMatcher(grammar)

            def mask(self) -> None:
                self._at.fill_next_token_bitmask(bits)

            def push(self, token_id: int) -> bool:
                return bool(self._at.accept_token(token_id))

        return Row


def _steps(row: Follower, token_ids: Sequence[int]) -> Iterator[float]:
    """Seconds of each."""
    for token_id in token_ids:
        started = time.perf_counter()
        row.mask()
        allowed = row.push(token_id)
        yield time.perf_counter() - started
        if not allowed:
            raise SystemExit("a reply does not fit its schema: the libraries cannot be compared")


def measure(library: Library, schema: Schema, token_ids: Sequence[int], rounds: int) -> dict[str, float]:
    """compile_ms, and of a step of a row p50_us, p99_us, max_us."""
    started = time.perf_counter()
    start = library.compile(schema)
    compile_s = time.perf_counter() - started
    steps = sorted(step for _ in range(rounds) for step in _steps(start(), token_ids))
    return {
        "compile_ms": compile_s * 1e3,
        "p50_us": statistics.median(steps) * 1e6,
        "p99_us": steps[int(len(steps) * 0.99)] * 1e6,
        "max_us": steps[-1] * 1e6,
    }


def _libraries(tokenizer: Any, vocabulary: int) -> Iterator[Library]:
    for library in (LLGuidance, XGrammar):
        try:
            yield library(tokenizer, vocabulary)
        except ImportError as error:
            print(f"{library.name} is left out: {error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.engines.masks", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=20, help="of each reply")
    options = parser.parse_args(argv)
    path = CHAT.find()
    if path is None:
        print(f"{CHAT.package} is not installed", file=sys.stderr)
        return 2
    try:
        tokenizer = Checkpoint(EngineOptions(model_path=str(path))).tokenizer().backend_tokenizer
    except StartupError as error:
        print(error, file=sys.stderr)
        return 2
    vocabulary = tokenizer.get_vocab_size()
    table = Table(title=f"A step of a row, {vocabulary:,} tokens")
    for column in ("reply", "tokens", "library", "compile ms", "p50 µs", "p99 µs", "max µs"):
        table.add_column(column, justify="left" if column in ("reply", "library") else "right")
    libraries = list(_libraries(tokenizer, vocabulary))
    for name, (schema, reply) in REPLIES.items():
        token_ids = tokenizer.encode(json.dumps(reply, separators=(",", ":")), add_special_tokens=False).ids
        for library in libraries:
            took = measure(library, schema, token_ids, options.rounds)
            table.add_row(name, str(len(token_ids)), library.name, *(f"{value:,.1f}" for value in took.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
