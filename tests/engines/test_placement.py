"""Weights in 8 and 4 bits, on the CPU; what is refused; and what a model over several GPUs needs, as far as one CPU can
show it."""

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from accelerate import dispatch_model
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from shared.errors import StartupError
from tests.engines.driving import Reference, SaveModel, Stepping
from tests.engines.test_embedding import embed
from tests.engines.test_real_models import SMOLLM, package_file
from worker.engines.budget import ON_CPU, cache_tokens
from worker.engines.kv_cache import KeyValueCache, Layer, Row
from worker.engines.options import EngineOptions
from worker.engines.packed_attention import Kernels, Packed
from worker.engines.packed_model import Cost, PackedModel
from worker.engines.placement import Placement, bring_back
from worker.engines.staging import Segment

Load = Callable[..., Stepping]
# bitsandbytes' 4-bit kernels for the CPU take 32 outputs and 64 inputs at a time.
WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
CALM = {**WIDE, "initializer_range": 0.1}  # where 4 bits do not change everything
PROMPTS = [[5, 9, 200], list(range(10, 80)), list(range(100, 130)), [77] * 12]
CONFIGS = {
    8: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
}


@pytest.fixture(scope="module")
def wide(save_model: SaveModel) -> Path:
    return save_model("llama", **WIDE)


@pytest.fixture(scope="module", params=[8, 4], ids=["8bit", "4bit"])
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def quantized(wide: Path, load: Load, bits: int) -> Stepping:
    return load(wide, slots=4, weight_bits=bits)


def from_pretrained(path: Path, config: BitsAndBytesConfig) -> Any:
    """By transformers alone."""
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=config
    ).eval()


def weights_of(engine: Stepping) -> int:
    return sum(one.numel() * one.element_size() for one in engine.generation._model._model.parameters())


def test_a_quantized_model_is_continued_as_by_generate(wide: Path, quantized: Stepping, bits: int) -> None:
    reference = Reference(wide)
    reference.model = from_pretrained(wide, CONFIGS[bits])
    answers = quantized.crowd({"payload": prompt, "max_tokens": 20} for prompt in PROMPTS)
    assert [answer.token_ids for answer in answers] == [reference.greedy(prompt, 20) for prompt in PROMPTS]


def test_a_quantized_model_computes_what_its_weights_say(wide: Path, load: Load, bits: int) -> None:
    """The same as float32 products with them, but for activations that are rounded."""
    stored = from_pretrained(
        wide, CONFIGS[bits]
    )  # not the engine's: on the CPU, the first forward packs the weights otherwise
    plain = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32).eval()
    for name, module in stored.named_modules():
        if isinstance(module, (Linear8bitLt, Linear4bit)):
            weight = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
            plain.get_submodule(name).weight.data = weight
    row = Row()
    packed = load(wide, weight_bits=bits).generation._model
    packed.cache.reserve(row, len(PROMPTS[1]))
    got = packed.forward([(row, PROMPTS[1])], [len(PROMPTS[1])])
    with torch.inference_mode():
        expected = plain(torch.tensor([PROMPTS[1]])).logits[0]
    assert float((got - expected).norm() / expected.norm()) < 0.1


def test_quantized_weights_are_smaller(wide: Path, load: Load, quantized: Stepping, bits: int) -> None:
    assert weights_of(quantized) < weights_of(load(wide)) * {8: 0.5, 4: 0.4}[bits]


def test_workers_of_other_bits_do_not_continue_each_others_streams(wide: Path, load: Load) -> None:
    engines = [load(wide, weight_bits=bits) for bits in (None, 8, 4)]
    assert len({engine.info.fingerprint for engine in engines}) == 3
    assert load(wide, weight_bits=4, dtype="bfloat16").info.fingerprint == engines[2].info.fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_are_computed_in_the_models_own_precision(wide: Path, load: Load, bits: int, dtype: str) -> None:
    engine = load(wide, weight_bits=bits, dtype=dtype)
    module = engine.generation._model._model.model.layers[0].mlp.up_proj
    assert bits == 8 or module.compute_dtype is getattr(torch, dtype)
    assert len(engine.answer("the quick", max_tokens=5).token_ids) == 5


def test_a_model_that_was_saved_quantized_is_computed_the_same(
    wide: Path, load: Load, bits: int, tmp_path: Path
) -> None:
    saved = Path(shutil.copytree(wide, tmp_path / "saved"))
    (saved / "model.safetensors").unlink()
    config = {8: BitsAndBytesConfig(load_in_8bit=True), 4: CONFIGS[4]}[bits]  # where outliers are above 6
    from_pretrained(wide, config).save_pretrained(saved)
    engines = [load(saved), load(wide, weight_bits=bits)]
    first, second = (engine.answer(PROMPTS[1], max_tokens=20).token_ids for engine in engines)
    assert first == second
    with pytest.raises(StartupError, match=rf"--load-{bits}bit: .* is quantized already \(bitsandbytes\)"):
        load(saved, weight_bits=bits)


def test_a_quantized_encoder_embeds_nearly_the_same(save_model: SaveModel, load: Load, bits: int) -> None:
    path = save_model("bert", AutoModel, **CALM)
    texts = ["the quick brown fox", "Zwölf Boxkämpfer jagen Viktor", "hello"]
    plain, small = (embed(load(path, weight_bits=one), *texts) for one in (None, bits))
    similar = torch.cosine_similarity(plain, small)
    assert bool((similar > {8: 0.995, 4: 0.9}[bits]).all()), similar


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_quantized_reranker_ranks(save_model: SaveModel, load: Load, bits: int, model_type: str) -> None:
    path = save_model(model_type, AutoModelForSequenceClassification, **CALM, num_labels=1)
    query = {"query": "the quick", "documents": ["brown fox", "hello world", "lazy dog"]}
    plain, small = (load(path, weight_bits=one).answer(query).result for one in (None, bits))
    assert plain is not None
    assert small is not None
    assert small["scores"] == pytest.approx(plain["scores"], abs={8: 0.05, 4: 0.2}[bits])


def test_an_encoder_that_bitsandbytes_cannot_compute_is_said_in_one_line(
    save_model: SaveModel, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which shapes those are is a matter of the processor: with AVX512-BF16 48 columns of 4 bits are such."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError("columns\nmust be a multiple of 64")

    monkeypatch.setattr(Linear4bit, "forward", refuse)
    with pytest.raises(StartupError, match="does not support BertModel: ") as caught:
        load(save_model("bert", AutoModel, hidden_size=48), weight_bits=4)
    assert "\n" not in str(caught.value)


CUDA = torch.device("cuda")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as they are asked about."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (30_000 + gpu, 80_000))


@pytest.mark.parametrize(
    ("options", "device", "why"),
    [
        ({"num_gpus": 3}, "cuda", "--num-gpus 3: this machine has 2"),
        ({"num_gpus": 2}, "cpu", "--num-gpus 2 is for --device cuda, and this worker has cpu"),
        ({"num_gpus": 2}, "mps", "--num-gpus 2 is for --device cuda, and this worker has mps"),
        ({"max_gpu_memory": "1GiB"}, "cpu", "--max-gpu-memory 1GiB is for --device cuda, and this worker has cpu"),
        ({"weight_bits": 8}, "mps", "--load-8bit is for --device cuda and cpu"),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_a_place_that_is_not_there_is_said(options: dict[str, Any], device: str, why: str) -> None:
    with pytest.raises(StartupError) as caught:
        Placement(EngineOptions(**options), torch.device(device))
    assert str(caught.value) == why


def test_a_missing_library_is_said(wide: Path, load: Load, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engines.placement.find_spec", lambda name: None)
    with pytest.raises(StartupError, match=f"--load-{bits}bit needs the library 'bitsandbytes': pip install"):
        load(wide, weight_bits=bits)


def test_a_gguf_file_is_not_quantized_again(load: Load, bits: int) -> None:
    path = package_file(*SMOLLM)
    with pytest.raises(StartupError, match=rf"--load-{bits}bit: .*\.gguf is quantized already \(GGUF\)"):
        load(path, weight_bits=bits)


class FakeAuto:
    """One of transformers' Auto classes, on a machine with GPUs."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load
        self.arguments: dict[str, Any] = {}

    def from_pretrained(self, source: str, **arguments: Any) -> Any:
        self.arguments = arguments
        return self.load()


@pytest.mark.parametrize(("limit", "memory"), [(None, {0: 30_000, 1: 30_001}), ("20KB", {0: 20_000, 1: 20_000})])
@pytest.mark.usefixtures("two_gpus")
def test_layers_that_are_left_over_are_not_read_from_the_disk(limit: str | None, memory: dict[int, int]) -> None:
    placement = Placement(EngineOptions(num_gpus=2, max_gpu_memory=limit), CUDA)
    auto = FakeAuto(lambda: nn.Linear(2, 2, device="meta"))  # where accelerate's hooks put what they fetch
    with pytest.raises(StartupError, match=f"^the weights do not fit on 2 GPUs{' with' * (limit is not None)}"):
        placement.load(auto, "source", prequantized=False)
    assert auto.arguments == {"device_map": "balanced", "max_memory": memory}


@pytest.mark.usefixtures("two_gpus")
def test_quantized_layers_that_are_left_over_are_said_the_same_way(bits: int) -> None:
    def refuse() -> None:
        quantizer = {8: Bnb8BitHfQuantizer, 4: Bnb4BitHfQuantizer}[bits]
        quantizer(CONFIGS[bits]).validate_environment(device_map={"model": 0, "lm_head": "disk"})

    placement = Placement(EngineOptions(num_gpus=2, weight_bits=bits), CUDA)
    with pytest.raises(StartupError, match=r"^the weights do not fit on 2 GPUs$"):
        placement.load(FakeAuto(refuse), "source", prequantized=False)


def test_a_model_with_accelerates_hooks_is_computed(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    names = ["embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"]
    places = {f"model.{name}": "cpu" for name in names} | {"lm_head": "cpu"}
    bring_back(dispatch_model(model, places, force_hooks=True))
    packed = PackedModel(model, 256, compiled=False)  # which compares it with its plain forward
    assert packed.cache.space.tokens > 0


def test_a_layers_keys_and_values_lie_where_it_does() -> None:
    modules = [nn.Module(), nn.Module()]
    devices = [torch.device("cpu"), torch.device("meta")]
    layers = {
        index: Layer(module, 2, 8, 8, torch.float32, device)
        for index, (module, device) in enumerate(zip(modules, devices, strict=True))
    }
    KeyValueCache(layers, 64, devices[0])
    assert [(one.keys.device, one.values.device) for one in modules] == [(device, device) for device in devices]


def test_what_attention_needs_is_copied_once_a_step_to_each_device() -> None:
    here, there = torch.device("cpu"), torch.device("meta")
    kernels = Kernels(9, *(torch.tensor([one]) for one in range(6)))
    assert kernels.on(here) is kernels
    copy = kernels.on(there)
    assert {getattr(copy, one.name).device for one in fields(copy) if one.type is torch.Tensor} == {there}
    assert kernels.on(there) is copy
    segment = Segment(0, 0, 0, 3)
    packed = Packed([segment])
    masks = [packed.mask(segment, None, torch.empty(0, device=device)) for device in (here, there)]
    assert [mask.device for mask in masks] == [here, there]


def test_the_fullest_gpu_decides_how_many_tokens_fit(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = PackedModel(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), 16, compiled=False)
    packed.device = CUDA
    monkeypatch.setattr(PackedModel, "bytes_per_token", {"roomy": 100, "full": 50})
    monkeypatch.setattr(PackedModel, "measure", lambda *_: Cost(1.0, {"roomy": 100, "full": 100}))  # type: ignore[dict-item]
    free = {"roomy": 11_000, "full": 2_600}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu], 10_000))
    tokens = (2_600 - 100 - 1_000) // 50
    assert cache_tokens(packed, ON_CPU, 4, utilization=0.9) == tokens
