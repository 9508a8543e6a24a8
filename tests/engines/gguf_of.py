"""A folder with a tiny Llama as the GGUF file that llama.cpp would read of it."""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_of(folder: Path, file: Path, pooling: gguf.PoolingType | None = None) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    _add_tokenizer(writer, folder)
    whole = _whole_characters(folder)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        theirs = _name(name)
        if name == "lm_head.weight":
            tensor = tensor * torch.tensor(whole).unsqueeze(1)
        for part, count in heads.items():
            if theirs.endswith(f"{part}.weight"):
                tensor = _interleaved(tensor, count)
        writer.add_tensor(theirs, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _whole_characters(folder: Path) -> list[bool]:
    """The tokens that are some, and no special ones. All others are never the most probable: what a real model says is
    text, and of what is none llama.cpp does not tell the tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = set(tokenizer.all_special_ids)
    ids = range(len(tokenizer))
    return [token_id not in special and "\ufffd" not in tokenizer.decode([token_id]) for token_id in ids]


def _name(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    """llama.cpp turns neighbours by one angle, transformers the two halves of a head."""
    rows, columns = tensor.shape
    return tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    told: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    names: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = told["model"]["vocab"]
    special = {added["content"]: added["id"] for added in told["added_tokens"]}
    tokens = [token for token, _ in sorted({**vocabulary, **special}.items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]])
    writer.add_bos_token_id(special[names["bos_token"]])
    writer.add_eos_token_id(special[names["eos_token"]])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
