"""models.yaml: what it says, and how it is told that it is wrong."""

import math
from pathlib import Path

import pytest

from cli.models_file import ModelsFile
from shared.errors import StartupError


def written(folder: Path, text: str) -> Path:
    file = folder / "models.yaml"
    file.write_text(text)
    return file


def test_a_model_is_its_worker_s_flags(tmp_path: Path) -> None:
    for folder in ("weights", "adapters/sql", "law"):
        (tmp_path / folder).mkdir(parents=True)
    file = ModelsFile.read(
        written(
            tmp_path,
            f"""
            keep_alive: 10m
            memory: 24GiB
            models:
              qwen:
                path: weights
                aliases: [q, qq]
                engine: transformers
                max_model_len: 4096
                enforce_eager: true
                trust-remote-code: false
                keep-alive: never
                memory: 16GiB
                lora_modules: {{sql: adapters/sql, law: {tmp_path}/law}}
              far: {{path: org/model, device: cuda}}
            aliases:
              chat: {{qwen: 90, far: 10}}
            """,
        ),
        {"device": "cpu"},
    )
    qwen, far = file.model("qwen", {"device": "cpu"}), file.model("far", {"device": "cpu"})
    assert qwen.words() == [
        *("--model-names", "qwen,q,qq", "--model-path", str(tmp_path / "weights")),
        *("--lora-modules", f"sql={tmp_path}/adapters/sql,law={tmp_path}/law", "--engine", "transformers"),
        *("--max-model-len", "4096", "--enforce-eager", "--no-trust-remote-code", "--device", "cpu"),
    ]
    assert qwen.names == ["qwen", "q", "qq", *(f"{name}:{of}" for name in ("qwen", "q", "qq") for of in ("sql", "law"))]
    assert far.words() == ["--model-names", "far", "--model-path", "org/model", "--device", "cuda"]
    assert (file.keep_alive_of("qwen"), file.keep_alive_of("far")) == (math.inf, 600)
    assert (file.models["qwen"].memory, file.memory) == (16 * 2**30, 24 * 2**30)
    assert file.aliases == {"chat": {"qwen": 90, "far": 10}}


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("0", 0), ("-1", math.inf)]
)
def test_times_are_written_as_people_do(tmp_path: Path, given: str, seconds: float) -> None:
    file = written(tmp_path, f"keep_alive: {given}\nmodels: {{a: {{engine: echo}}}}")
    assert ModelsFile.read(file, {}).keep_alive_of("a") == seconds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("models: [", "while parsing"),
        ("", "models: Field required"),
        ("models: {}", "models: Dictionary should have at least 1 item"),
        ("- a", "models: Input should be a valid dictionary"),
        ("models: {a: {engine: echo}}\nmodel: {}", "model: Extra inputs are not permitted"),
        ("models: {a: {engine: echo, keep_alive: soon}}", "models.a.keep_alive: write it as 90s, 5m, 2h or never"),
        ("models: {a: {engine: echo, memory: much}}", "models.a.memory: could not parse value"),
        ("models: {'a,b': {engine: echo}}", "models.a,b: it may not be empty, nor have commas"),
        ("models: {' a ': {engine: echo}}", "blanks around it"),
        ('models: {"a\\0": {engine: echo}}', "control characters"),
        ('models: {"a,b\\n": {engine: echo}}', "control characters"),
        ("models: {'': {engine: echo}}", "it may not be empty"),
        (f"models: {{{'a' * 201}: {{engine: echo}}}}", "at most 200 characters"),
        ("models: {a: {engine: echo}, a: {engine: echo}}", "'a' is there twice"),
        ("models: {a: {engine: echo, aliases: [' b']}}", "models.a.aliases.0: it may not be empty"),
        ("models: {a: {path: ''}}", "models.a.path: it may not be empty"),
        ("models: {a: {path: 'x,y'}}", "models.a.path: it may not"),
        (f"models: {{a: {{path: {'x' * 5000}}}}}", "models.a: File name too long"),
        ("models: {a: {path: ~nobody-at-all/x}}", "models.a: Could not determine home"),
        ("models: {a: {path: x, lora_modules: {'x=y': z}}}", "may not have a '='"),
        ("models: {a: {path: x, lora_modules: {x: 'z,y=/m'}}}", "models.a.lora_modules.x: it may not"),
        ("models: {a: {path: x, lora-modules: {x: none}}}", "models.a.lora_modules.x: there is no folder "),
        ("models: {a: {path: x, lora-modules: x=/n}}", "models.a.lora_modules: Input should be a valid dictionary"),
        ("models: {a: {engine: echo, keep-alive: 5m, keep_alive: 6m}}", "models.a: 'keep-alive' and 'keep_alive'"),
        ("models: {a: {engine: echo, keep_alive: 2024-99-99}}", "models.yaml: month must be in 1..12"),
        (f"models: {{a: {{engine: echo, max_model_len: {'9' * 5000}}}}}", "models.yaml: Exceeds the limit"),
        ("models: {a: {engine: echo, memory: true}}", "models.a.memory: write it as 24GiB"),
        ("memory: 0\nmodels: {a: {engine: echo, memory: 2GiB}}", "models.a: it takes more memory than all may have"),
        ("models: {a: {engine: echo}}\naliases: {c: {a: .inf}}", "aliases.c.a: Input should be a finite number"),
        ("models: {a: {engine: echo}}\naliases: {c: {}}", "aliases.c: Dictionary should have at least 1 item"),
        ("models: {a: {engine: ecko}}", "models.a: --engine: Input should be"),
        ("models: {a: {engine: echo, max_model_len: 0}}", "models.a: --max-model-len: Input should be greater than 0"),
        ("models: {a: {path: x, max_modle_len: 9}}", "models.a: --max-modle-len 9: not a worker's"),
        ("models: {a: {path: x, engine: transformers, max_modle_len: 9}}", "models.a: --max-modle-len 9 is not for"),
        ("models: {a: {model_path: x}}", "models.a: 'model_path' is called 'path' here"),
        ("models: {a: {}}", "models.a: --model-path is needed"),
        ("models: {a: {engine: echo}, b: {engine: echo, aliases: [a]}}", "two models are called 'a'"),
        ("models: {a: {engine: echo}}\naliases: {a: {a: 1}}", "aliases.a: a model is called so"),
        ("models: {a: {engine: echo}}\naliases: {c: {b: 1}}", "aliases.c: there is no model 'b'"),
        ("models: {a: {engine: echo}}\naliases: {c: {a: 0}}", "aliases.c.a: Input should be greater than 0"),
        ("memory: 1GiB\nmodels: {a: {engine: echo, memory: 2GiB}}", "models.a: it takes more memory than all may have"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(StartupError) as caught:
        ModelsFile.read(written(tmp_path, text), {})
    assert why in str(caught.value)
    assert "models.yaml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        ModelsFile.read(tmp_path / "none.yaml", {})
