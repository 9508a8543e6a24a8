"""Tokenize and detokenize are answered by both kinds of model, at once."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidRequest, UnsupportedModel
from shared.messages import Kind, SamplingParams
from tests.engines.driving import Stepping
from worker.engines.base import EngineRequest, Output


def prepared(engine: Stepping, kind: Kind, **payload: Any) -> Output:
    output = engine.stepper.prepare(EngineRequest("r", kind, payload, SamplingParams(seed=0)))
    assert isinstance(output, Output)
    assert not engine.stepper.has_work()
    return output


@pytest.fixture(scope="module")
def embedder(encoder: Path, load: Any) -> Stepping:
    engine: Stepping = load(encoder)
    return engine


@pytest.mark.parametrize("name", ["loaded_llama", "embedder"])
def test_text_becomes_tokens_and_text_again(name: str, request: pytest.FixtureRequest) -> None:
    engine = request.getfixturevalue(name)
    output = prepared(engine, "tokenize", prompt="über <|end|> the", add_special_tokens=False)
    assert output.result is not None
    assert "<|end|>" in output.result["token_strs"]
    assert output.ends
    back = prepared(engine, "detokenize", tokens=output.result["tokens"])
    assert back.result == {"prompt": "über <|end|> the"}


def test_an_embedding_model_has_no_chat_to_tokenize(embedder: Stepping) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(UnsupportedModel):
        prepared(embedder, "tokenize", messages=messages, add_special_tokens=False)


@pytest.mark.parametrize("prompt", [None, [1], "\ud800"])
def test_what_is_no_text_is_not_tokenized(embedder: Stepping, prompt: Any) -> None:
    with pytest.raises(InvalidRequest):
        prepared(embedder, "tokenize", prompt=prompt, add_special_tokens=False)
