"""What can be wrong with a model path is one clear line; equal weights have equal fingerprints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from shared.errors import InvalidRequest, StartupError
from tests.engines.driving import SaveModel, Stepping
from worker.engines import budget

Load = Callable[..., Stepping]


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"device": "warp"}, "--device warp: use one of"),
        ({"dtype": "float7"}, "--dtype float7: use one of"),
        ({"max_model_len": 257}, "--max-model-len 257 is more than the 256 tokens"),
        ({"chat_template": "no/such/template.jinja"}, "cannot read the chat template"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_said(llama: Path, load: Load, options: dict[str, Any], why: str) -> None:
    with pytest.raises(StartupError, match=why) as caught:
        load(llama, **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_say_how_many_tokens_it_can_hold_is_told(save_model: SaveModel, load: Load) -> None:
    path = save_model("bloom", n_layer=1, n_head=4)
    config = json.loads((path / "config.json").read_text())
    del config["max_position_embeddings"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match="does not say how many tokens it can hold: --max-model-len"):
        load(path)
    assert load(path, max_model_len=100).info.max_model_len == 100


@pytest.mark.parametrize("path", ["/no/such/model", "./no/such", "missing.gguf", "not a hub id!"])
def test_a_path_to_nothing_is_said(load: Load, path: str) -> None:
    with pytest.raises(StartupError, match="no such file or directory"):
        load(Path(path) if path.startswith("/") else path)


def test_a_file_that_is_no_gguf_is_said(load: Load, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(StartupError, match="neither a model directory nor a"):
        load(tmp_path / "weights.bin")


def test_a_broken_gguf_is_said(load: Load, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(StartupError, match="cannot load the config of"):
        load(tmp_path / "broken.gguf")


def test_an_empty_directory_is_said(load: Load, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot load the config of"):
        load(tmp_path)


@pytest.mark.parametrize(("name", "what"), [("model.safetensors", "weights"), ("tokenizer.json", "tokenizer")])
def test_a_damaged_file_is_said_in_one_line(copied: Path, load: Load, name: str, what: str) -> None:
    (copied / name).write_bytes(b"damaged")
    with pytest.raises(StartupError, match=f"cannot load the {what} of") as caught:
        load(copied)
    assert "\n" not in str(caught.value)


def test_equal_weights_elsewhere_have_the_same_fingerprint(copied: Path, load: Load, loaded_llama: Stepping) -> None:
    config = json.loads((copied / "config.json").read_text())
    config.update(transformers_version="5.0.0", _name_or_path="/somewhere/else", dtype="bfloat16")
    (copied / "config.json").write_text(json.dumps(config))
    assert load(copied).info.fingerprint == loaded_llama.info.fingerprint
    assert len(loaded_llama.info.fingerprint) == 16


def test_other_weights_have_another_fingerprint(save_model: SaveModel, load: Load, loaded_llama: Stepping) -> None:
    others = [save_model("llama", rms_norm_eps=1e-3), save_model("llama", hidden_size=40), save_model("qwen2")]
    fingerprints = {load(path).info.fingerprint for path in others}
    assert len(fingerprints | {loaded_llama.info.fingerprint}) == 4


def test_the_info_says_what_was_loaded(loaded_llama: Stepping) -> None:
    info = loaded_llama.info
    assert (info.name, info.max_model_len, info.slots, info.resumable) == ("transformers", 256, 4, True)


def test_a_shorter_context_can_be_asked_for(llama: Path, load: Load) -> None:
    engine = load(llama, max_model_len=30)
    assert engine.info.max_model_len == 30
    assert len(engine.answer([5] * 25, max_tokens=None).token_ids) == 5


@pytest.mark.parametrize("from_file", [False, True])
def test_a_chat_template_can_be_given(llama: Path, load: Load, tmp_path: Path, from_file: bool) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "template.jinja").write_text(template)
    engine = load(llama, chat_template=str(tmp_path / "template.jinja") if from_file else template)
    chat = engine.answer({"messages": [{"role": "user", "content": "the quick"}]}, max_tokens=8)
    assert chat.token_ids == engine.answer("the quick", max_tokens=8).token_ids


def test_without_a_chat_template_chat_is_refused(copied: Path, load: Load, tokenizer: PreTrainedTokenizerFast) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(InvalidRequest, match="no chat template"):
        load(copied).submit({"messages": [{"role": "user", "content": "x"}]})


def test_a_container_s_memory_is_what_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CGROUP", tmp_path)
    whole = budget._free_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert budget._free_memory() > whole / 2
    (tmp_path / "memory.max").write_text("50000\n")
    assert budget._free_memory() == 49000
