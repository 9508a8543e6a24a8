"""Which engine serves what, where none was named."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from shared.errors import StartupError
from worker import __main__ as worker
from worker.engines import auto, checkpoint, llama_server
from worker.settings import WorkerSettings


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What may be added to; and a GPU is `cuda`, and a model that generates lies everywhere."""
    found: set[str] = {"generation"}
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    monkeypatch.setattr(auto, "find_spec", lambda name: name if name in found else None)
    monkeypatch.setattr(llama_server, "find_spec", lambda name: name if name in found else None)
    monkeypatch.setattr(llama_server.shutil, "which", lambda name: name if name in found else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in found)

    class Checkpoint:
        def __init__(self, options: object) -> None:
            pass

        def task(self) -> str:
            return "generation" if "generation" in found else "embedding"

    monkeypatch.setattr(checkpoint, "Checkpoint", Checkpoint)
    return found


@pytest.mark.parametrize(
    ("there", "flags", "engine"),
    [
        ((), "--model-path /m", "transformers"),
        (("vllm",), "--model-path /m", "transformers"),
        (("vllm", "cuda"), "--model-path /m", "vllm"),
        (("vllm", "cuda"), "--model-path /m --load-4bit", "transformers"),
        (("vllm", "cuda"), "--model-path /m --enable-lora", "vllm"),
        (("vllm", "cuda", "xllamacpp"), "--model-path /m.gguf", "llamacpp"),
        ((), "--model-path /m.gguf", "transformers"),
        (("xllamacpp",), "--model-path /m.GGUF", "llamacpp"),
        (("llama-server",), "--model-path /m.gguf", "llamacpp"),
        (("xllamacpp",), "--model-path /m.gguf --dtype float32", "transformers"),
        (("vllm", "cuda"), "--upstream-url http://h/v1 --model-names m", "openai"),
    ],
)
def test_the_fastest_that_is_there_and_does_what_was_asked(
    installed: set[str], there: Iterable[str], flags: str, engine: str
) -> None:
    installed.update(there)
    name, why = worker.chosen(WorkerSettings.read("worker", flags.split()))
    assert name == engine
    assert why


def test_what_does_not_generate_is_for_transformers(installed: set[str]) -> None:
    installed.update(("vllm", "cuda"))
    installed.remove("generation")
    assert worker.chosen(WorkerSettings.read("worker", ["--model-path", "/m"]))[0] == "transformers"


def test_a_flag_that_nobody_has_is_refused(installed: set[str]) -> None:
    with pytest.raises(StartupError, match="unrecognized arguments: --no-such-flag"):
        worker.chosen(WorkerSettings.read("worker", ["--model-path", "/m", "--no-such-flag"]))


def test_a_llama_server_can_be_named(installed: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_SERVER", str(tmp_path))
    assert worker.chosen(WorkerSettings.read("worker", ["--model-path", "/m.gguf"]))[0] == "llamacpp"
