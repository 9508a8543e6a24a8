"""Tiny random models with a real tokenizer, loaded through the normal path."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.engines.driving import Reference, SaveModel, Stepping
from tests.engines.gguf_of import gguf_of
from worker.engines.options import EngineOptions
from worker.engines.transformers_impl import TransformersStepper

collect_ignore = [] if find_spec("vllm") else ["vllm"]  # its tests run in an environment of its own

VOCABULARY = 384
TEXT = (
    "the quick brown fox jumps over the lazy dog. Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. "
    "system user assistant developer hello world stop token stream 0 1 2 3 4 5 6 7 8 9\n"
)
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,  # far from uniform logits: no near ties for rounding to decide
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text, also characters that are split over several tokens."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|begin|>", eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> SaveModel:
    """Saves a random model of an architecture (`model_type`) and returns its directory."""

    def save(model_type: str, auto: Any = AutoModelForCausalLM, **changes: Any) -> Path:
        torch.manual_seed(7)
        folder = tmp_path_factory.mktemp(model_type)
        auto.from_config(AutoConfig.for_model(model_type, **{**SMALL, **changes})).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def llama_for_vllm(save_model: SaveModel) -> Path:
    """Whose heads are as wide as vLLM's kernels for CPUs want them at the least, and that has a lot to say."""
    heads = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return save_model("llama", max_position_embeddings=4096, **heads)


@pytest.fixture(scope="session")
def llama_gguf(llama_for_vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as llama.cpp reads it."""
    return gguf_of(llama_for_vllm, tmp_path_factory.mktemp("gguf") / "llama.gguf")


@pytest.fixture(scope="session")
def llama(save_model: SaveModel) -> Path:
    return save_model("llama")


@pytest.fixture(scope="session")
def encoder(save_model: SaveModel) -> Path:
    return save_model("bert", AutoModel)


@pytest.fixture(scope="session")
def load() -> Callable[..., Stepping]:
    def load(path: Path, **options: Any) -> Stepping:
        stepper = TransformersStepper(
            EngineOptions(**{"model_path": str(path), "device": "cpu", "threads": 1, **options})
        )
        return Stepping(stepper, stepper.load())

    return load


@pytest.fixture(scope="session")
def loaded_llama(llama: Path, load: Callable[..., Stepping]) -> Stepping:
    return load(llama, slots=4)


@pytest.fixture
def engine(loaded_llama: Stepping) -> Stepping:
    """The tiny Llama with four slots, idle."""
    loaded_llama.forget()
    return loaded_llama


@pytest.fixture(scope="session")
def reference(llama: Path) -> Reference:
    return Reference(llama)
