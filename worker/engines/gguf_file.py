"""What transformers drops of a GGUF file's tokenizer."""

from pathlib import Path

from gguf import GGUFReader
from tokenizers import Tokenizer, pre_tokenizers

# llama.cpp's names of pre-tokenizers that split digits one by one and the rest as GPT-2 does.
SPLIT_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def restore_pre_tokenizer(tokenizer: Tokenizer, file: Path) -> None:
    """Without its digits split, SmolLM2 reads "  12" as other tokens than it was trained on."""
    field = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in SPLIT_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])
