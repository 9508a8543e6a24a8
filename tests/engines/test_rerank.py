"""Reranking: the scores that transformers itself computes, whatever stands beside a document in its batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shared.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, StartupError, UnsupportedModel
from tests.engines.driving import SaveModel, Stepping

Load = Callable[..., Stepping]
QUERY = "the quick fox"
DOCUMENTS = ["", "the quick brown fox", "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich", "0 1 2"]


@pytest.fixture(scope="module")
def path(save_model: SaveModel) -> Path:
    path = save_model("bert", AutoModelForSequenceClassification, num_labels=1)
    config = json.loads((path / "tokenizer_config.json").read_text())
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    (path / "tokenizer_config.json").write_text(json.dumps(config | names))
    return path


@pytest.fixture(scope="module")
def loaded(path: Path, load: Load) -> Stepping:
    return load(path)


@pytest.fixture
def reranker(loaded: Stepping) -> Stepping:
    loaded.forget()
    return loaded


def scores(reranker: Stepping, documents: list[str]) -> torch.Tensor:
    answer = reranker.answer({"query": QUERY, "documents": documents})
    assert answer.result is not None
    return torch.tensor(answer.result["scores"])


def expected(path: Path) -> torch.Tensor:
    """One pair at a time, by transformers' own tokenizer and model."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    logits = []
    for document in DOCUMENTS:
        pair = tokenizer(QUERY, document, return_tensors="pt")
        with torch.inference_mode():
            logits.append(model(**pair).logits[0, 0])
    return torch.stack(logits).sigmoid()


def test_a_score_is_the_sigmoid_of_the_logit(reranker: Stepping, path: Path) -> None:
    assert reranker.generation._takes_types
    reference = expected(path)
    assert reference.unique().numel() == len(DOCUMENTS)
    torch.testing.assert_close(scores(reranker, DOCUMENTS), reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [1, 5, None])
def test_a_decoder_with_one_label_ranks_too(save_model: SaveModel, load: Load, padding: int | None) -> None:
    path = save_model("qwen3", AutoModelForSequenceClassification, num_labels=1, pad_token_id=padding)
    torch.testing.assert_close(scores(load(path), DOCUMENTS), expected(path), atol=1e-5, rtol=0)


def test_a_document_has_the_same_score_alone_and_in_a_batch(reranker: Stepping) -> None:
    alone = torch.cat([scores(reranker, [document]) for document in DOCUMENTS])
    torch.testing.assert_close(scores(reranker, DOCUMENTS), alone, atol=1e-5, rtol=0)


def test_several_requests_are_ranked_in_one_step(reranker: Stepping) -> None:
    ids = [reranker.submit({"query": QUERY, "documents": DOCUMENTS[:count]}) for count in (1, 4)]
    reranker.step()
    assert [len((reranker.answers[id].result or {})["scores"]) for id in ids] == [1, 4]


def test_usage_counts_the_tokens_of_all_pairs(reranker: Stepping, path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path)
    usage = reranker.answer({"query": QUERY, "documents": DOCUMENTS}).usage
    assert usage is not None
    assert usage.prompt_tokens == sum(len(tokenizer(QUERY, document).input_ids) for document in DOCUMENTS)


def test_a_pair_longer_than_the_model_is_refused(reranker: Stepping) -> None:
    for size in (300, 1_000_000):
        with pytest.raises(ContextLengthExceeded, match="maximum context length is 256 tokens") as caught:
            reranker.submit({"query": QUERY, "documents": ["fine", "0 1" * size]})
        assert caught.value.param == "documents"


@pytest.mark.parametrize(
    ("query", "documents"), [("", ["x"]), (None, ["x"]), ("x", []), ("x", None), ("x", [1]), ("x", ["\ud83d"])]
)
def test_what_cannot_be_ranked_is_said(reranker: Stepping, query: Any, documents: Any) -> None:
    with pytest.raises(InvalidRequest):
        reranker.submit({"query": query, "documents": documents})


@pytest.mark.parametrize("payload", [{"inputs": ["x"]}, {"prompt": "x"}, {"messages": []}])
def test_a_reranker_does_nothing_else(reranker: Stepping, payload: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="ranks documents"):
        reranker.submit(payload)


def test_a_generation_model_does_not_rank(engine: Stepping) -> None:
    with pytest.raises(UnsupportedModel):
        engine.submit({"query": QUERY, "documents": DOCUMENTS})


def test_a_score_that_is_no_number_fails_its_request_alone(reranker: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = reranker.submit({"query": QUERY, "documents": ["0 1 2"]})
    good = reranker.submit({"query": QUERY, "documents": ["the quick"]})
    rows = reranker.generation._compute
    monkeypatch.setattr(
        reranker.generation, "_compute", lambda inputs: rows(inputs) * torch.tensor([1.0, float("nan")])
    )
    reranker.step()
    assert isinstance(reranker.answers[bad].error, EngineFailed)
    assert reranker.answers[good].finish_reason == "stop"


def test_a_classifier_with_more_labels_is_refused(save_model: SaveModel, load: Load) -> None:
    path = save_model("bert", AutoModelForSequenceClassification, num_labels=3)
    assert json.loads((path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    with pytest.raises(StartupError, match="a classifier with 3 labels"):
        load(path)
