"""The command `llm`, with its file of models that speak OpenAI's language."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHAT

MODELS = """
- model_id: local
  model_name: {model}
  api_base: {url}
  api_key_name: local
  supports_schema: true
- model_id: plain
  model_name: echo
  api_base: {url}
  api_key_name: local
- model_id: nobody
  model_name: nobody
  api_base: {url}
  api_key_name: local
"""


@pytest.fixture
def folder(tmp_path: Path, url: str, key: str) -> Path:
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(model=CHAT, url=url))
    (tmp_path / "keys.json").write_text(json.dumps({"local": key}))
    return tmp_path


def llm(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llm", *words]
    env = os.environ | {"LLM_USER_PATH": str(folder)}
    return subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


def test_a_prompt_is_answered(folder: Path) -> None:
    assert llm(folder, "-m", "plain", "-o", "max_tokens", "3", "one two").stdout == "one two one\n"


def test_a_schema_is_kept(folder: Path) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    done = llm(folder, "-m", "local", "--schema", json.dumps(schema), "Where is the Colosseum?")
    assert json.loads(done.stdout)["city"] in ("Rome", "Oslo"), done.stderr


def test_an_unknown_model_is_told_of(folder: Path) -> None:
    done = llm(folder, "-m", "nobody", "hi")
    assert done.returncode != 0
    assert "does not exist" in done.stderr
