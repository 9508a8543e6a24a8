"""GGUF files: parsed once while an engine loads, and what transformers drops of their tokenizer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

# llama.cpp's names of pre-tokenizers that split digits one by one and the rest as GPT-2 does.
SPLIT_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


class Reader(gguf.GGUFReader):
    """Reads a plain array: each of the 250,000 slices that a vocabulary takes runs Python code in a numpy.memmap."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, np.asarray(value) if name == "data" else value)


@contextmanager
def parsed_once() -> Iterator[None]:
    """While this is open, gguf reads a file and makes a map of tensor names once, and gives the same again.

    transformers can be given neither. It reads the file for the config, for the tokenizer and for the weights, and
    makes the map for each module of the model, which takes 13 s more with SmolLM2. It asks gguf by name at each use.
    """
    read, name_map = cache(Reader), cache(gguf.get_tensor_name_map)
    theirs = {"GGUFReader": gguf.GGUFReader, "get_tensor_name_map": gguf.get_tensor_name_map}
    ours = {"GGUFReader": lambda path: read(os.path.realpath(path)), "get_tensor_name_map": name_map}
    try:
        vars(gguf).update(ours)
        yield
    finally:
        vars(gguf).update(theirs)


def restore_pre_tokenizer(tokenizer: Tokenizer, file: Path) -> None:
    """Without its digits split, SmolLM2 reads "  12" as other tokens than it was trained on."""
    field = gguf.GGUFReader(file).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in SPLIT_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])
