"""Models of known shapes with random weights, made where they run: nothing is downloaded, and nothing written but by

python -m bench.engines.random_model qwen2.5-7b FOLDER [DEVICE]
"""

import sys
from functools import cached_property
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from worker.engines.checkpoint import Checkpoint

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}


class RandomCheckpoint(Checkpoint):
    """In the place of one that lies in a folder."""

    def __init__(self, shape: str, device: str, dtype: torch.dtype, max_model_len: int) -> None:
        self.device = torch.device(device)
        self._shape = dict(SHAPES[shape])
        self._random_dtype = dtype
        self._len = max_model_len

    @cached_property
    def config(self) -> Any:
        return AutoConfig.for_model(**self._shape)

    def tokenizer(self) -> Any:
        """Every token has a text: what is made is decoded and sent as of a real model."""
        vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary += [f"Ġ{place}" for place in range(len(vocabulary), self._shape["vocab_size"])]
        bpe = Tokenizer(BPE(vocab={one: place for place, one in enumerate(vocabulary)}, merges=[]))
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=bpe)  # type: ignore[no-untyped-call]

    def causal_model(self) -> PreTrainedModel:
        torch.manual_seed(1)
        default = torch.get_default_dtype()
        torch.set_default_dtype(self._random_dtype)
        try:
            with self.device:
                model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config)  # type: ignore[no-untyped-call]
        finally:
            torch.set_default_dtype(default)
        return model.eval()  # type: ignore[no-untyped-call,no-any-return]

    def max_model_len(self) -> int:
        return self._len

    def eos_ids(self, model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
        return frozenset()

    def fingerprint(self, model: PreTrainedModel, tokenizer: Any) -> str:
        return "random"


def main() -> None:
    shape, folder, device = [*sys.argv[1:], "cpu"][:3]
    checkpoint = RandomCheckpoint(shape, device, torch.bfloat16, 0)
    checkpoint.causal_model().save_pretrained(folder)
    checkpoint.tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main()
