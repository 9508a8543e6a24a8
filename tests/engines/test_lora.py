"""LoRA adapters over one set of weights: each sequence is continued as by peft, whoever it shares a step with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from shared.errors import StartupError
from tests.engines.driving import Reference, SaveModel, Stepping
from worker.engines.adapter_files import fingerprint_of_adapter
from worker.engines.packed_model import PackedModel
from worker.engines.plain_model import PlainModel

# peft 0.21 asks transformers 5.23 by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
Load = Callable[..., Stepping]
KINDS: dict[str, dict[str, Any]] = {
    "wide": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "narrow": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]},
    "stable": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["k_proj", "o_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.o_proj": 6},
        "alpha_pattern": {"down_proj": 20},
    },
}
FUSED = {"narrow": {"r": 2, "lora_alpha": 3, "target_modules": ["qkv_proj", "gate_up_proj"]}}
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "llama": ({}, KINDS),
    "qwen3": ({}, KINDS),
    "gemma3_text": ({"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}, KINDS),
    "phi3": ({"sliding_window": 24}, FUSED),
    "cohere": ({}, KINDS),
}
PROMPTS = [[5, 9, 200], list(range(10, 80)), list(range(100, 130)), list(range(10, 60))]


def save_adapter(model: Path, folder: Path, seed: int, **config: Any) -> Path:
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture
def adapters(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    def save(model: Path, kinds: dict[str, dict[str, Any]]) -> dict[str, Path]:
        return {
            name: save_adapter(model, tmp_path / name, seed, **config)
            for seed, (name, config) in enumerate(kinds.items())
        }

    return save


def references(path: Path, adapters: dict[str, Path]) -> list[Reference]:
    """Of the model itself, and with each adapter."""
    found = [Reference(path), *(Reference(path) for _ in adapters)]
    for reference, folder in zip(found[1:], adapters.values(), strict=True):
        reference.model = PeftModel.from_pretrained(reference.model, str(folder)).eval()
    return found


def given(adapters: dict[str, Path]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(path)) for name, path in adapters.items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_one_step_each_sequence_has_its_own(
    save_model: SaveModel, load: Load, adapters: Callable[..., dict[str, Path]], name: str
) -> None:
    shape, kinds = ARCHITECTURES[name]
    path = save_model(name, **shape)
    found = adapters(path, kinds)
    engine = load(path, lora_modules=given(found))
    assert isinstance(engine.generation._model, PackedModel)
    asked = [(prompt, adapter) for adapter in range(len(found) + 1) for prompt in PROMPTS]
    answers = engine.crowd({"payload": prompt, "max_tokens": 12, "adapter": adapter} for prompt, adapter in asked)
    expected = references(path, found)
    told = [expected[adapter].greedy(prompt, 12) for prompt, adapter in asked]
    assert [answer.token_ids for answer in answers] == told
    # And they are not all the same.
    assert len({tuple(told[len(PROMPTS) * adapter]) for adapter in range(len(found) + 1)}) == len(found) + 1


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"weight_bits": 8}], ids=["bfloat16", "8 bits"])
def test_over_weights_that_are_kept_otherwise(
    save_model: SaveModel, load: Load, adapters: Callable[..., dict[str, Path]], options: dict[str, Any]
) -> None:
    """There the layers are others, and rounding may make other tokens, but none that are unlikely."""
    path = save_model("llama", hidden_size=64, intermediate_size=128)
    found = adapters(path, KINDS)
    engine = load(path, lora_modules=given(found), **options)
    answers = engine.crowd(
        {"payload": PROMPTS[1], "max_tokens": 1, "adapter": number, "logprobs": 5} for number in range(4)
    )
    base = load(path, **options).answer(PROMPTS[1], max_tokens=1, logprobs=5)
    assert answers[0].logprobs == base.logprobs
    for answer, reference in zip(answers[1:], references(path, found)[1:], strict=True):
        likely = reference.logprobs(PROMPTS[1])[-1].exp()
        drawn = answer.token_ids[0]
        assert likely[drawn] > likely.max() / 3


def test_a_model_that_is_computed_row_by_row_has_them_too(
    save_model: SaveModel, load: Load, adapters: Callable[..., dict[str, Path]]
) -> None:
    path = save_model("mamba", hidden_size=32, state_size=8, num_hidden_layers=2, expand=2)
    found = adapters(path, {"narrow": {"r": 2, "lora_alpha": 3, "target_modules": ["in_proj", "x_proj"]}})
    engine = load(path, lora_modules=given(found), max_model_len=100)
    assert isinstance(engine.generation._model, PlainModel)
    asked = [(prompt, adapter) for adapter in (0, 1) for prompt in PROMPTS[:1]]
    answers = engine.crowd({"payload": prompt, "max_tokens": 8, "adapter": adapter} for prompt, adapter in asked)
    expected = references(path, found)
    told = [expected[adapter].greedy(prompt, 8) for prompt, adapter in asked]
    assert [answer.token_ids for answer in answers] == told
    assert told[0] != told[1]


def test_what_one_adapter_has_computed_of_a_prompt_is_for_it_alone(
    save_model: SaveModel, load: Load, adapters: Callable[..., dict[str, Path]]
) -> None:
    path = save_model("llama")
    found = adapters(path, KINDS)
    engine = load(path, lora_modules=given(found))
    cached = []
    for adapter in (1, 2, 1, 0, 0):
        answer = engine.answer(PROMPTS[1], max_tokens=4, adapter=adapter)
        assert answer.usage is not None
        cached.append(answer.usage.cached_tokens > 0)
    assert cached == [False, False, True, False, True]


def test_each_has_a_fingerprint_by_what_is_in_its_files(
    save_model: SaveModel, load: Load, adapters: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    path = save_model("llama")
    found = adapters(path, KINDS)
    info = load(path, lora_modules=given(found)).info
    assert list(info.adapters) == list(KINDS)
    assert len({info.fingerprint, *info.adapters.values()}) == len(KINDS) + 1
    assert info.with_adapter("wide").fingerprint == fingerprint_of_adapter(info.fingerprint, str(found["wide"]))
    other = save_adapter(path, tmp_path / "other", 99, **KINDS["wide"])
    assert fingerprint_of_adapter(info.fingerprint, str(other)) != info.adapters["wide"]


def _write(folder: Path, config: dict[str, Any] | str) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (None, "No such file"),
        ("{", "is no JSON"),
        ({"peft_type": "IA3"}, "holds no LoRA adapter"),
        ({"peft_type": "LORA", "use_dora": True}, "use_dora is not supported"),
        ({"peft_type": "LORA"}, "holds no adapter_model"),
        ("[]", "is no JSON object"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
    ],
)
def test_what_is_no_adapter_is_refused(
    save_model: SaveModel, load: Load, tmp_path: Path, config: dict[str, Any] | str | None, why: str
) -> None:
    if config is not None:
        _write(tmp_path / "bad", config)
    with pytest.raises(StartupError, match=why):
        load(save_model("llama"), lora_modules=(("bad", str(tmp_path / "bad")),))


@pytest.mark.parametrize("cut", [0, 100])
def test_a_damaged_one_is_refused(
    save_model: SaveModel, load: Load, adapters: Callable[..., dict[str, Path]], cut: int
) -> None:
    path = save_model("llama")
    found = adapters(path, {"wide": KINDS["wide"]})
    weights = found["wide"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(StartupError, match="cannot read"):
        load(path, lora_modules=given(found))


def test_what_does_not_fit_the_model_is_refused(
    save_model: SaveModel, load: Load, adapters: Callable[..., dict[str, Path]]
) -> None:
    found = adapters(save_model("llama", num_hidden_layers=3), {"wide": KINDS["wide"]})
    with pytest.raises(StartupError, match=r"wide: the model has no model.layers.2"):
        load(save_model("llama"), lora_modules=given(found))
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        embeds = adapters(save_model("llama"), {"embeds": {"r": 2, "target_modules": ["embed_tokens"]}})
    with pytest.raises(StartupError, match="only linear layers"):
        load(save_model("llama"), lora_modules=given(embeds))


def test_an_encoder_has_none(save_model: SaveModel, load: Load, tmp_path: Path) -> None:
    from transformers import AutoModel

    path = save_model("bert", AutoModel)
    with pytest.raises(StartupError, match="for models that generate"):
        load(path, lora_modules=(("a", str(tmp_path)),))
