"""Embeddings: what the model's own files say, whatever stands beside a text in its batch."""

import base64
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from shared.errors import ContextLengthExceeded, InvalidRequest, StartupError, UnsupportedModel
from shared.messages import EMBEDDING_INPUTS_PER_JOB, Usage
from tests.engines.driving import Payload, SaveModel, Stepping
from worker.engines.encoder import batches_of_similar_length

Load = Callable[..., Stepping]
TEXTS = ["the", "the quick brown fox", "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich", "0 1"]


@pytest.fixture(scope="session")
def loaded_encoder(encoder: Path, load: Load) -> Stepping:
    return load(encoder)


@pytest.fixture
def embedder(loaded_encoder: Stepping) -> Stepping:
    loaded_encoder.forget()
    return loaded_encoder


def vectors(answered: list[str] | None) -> torch.Tensor:
    raw = [base64.b64decode(text) for text in answered or []]
    return torch.tensor([struct.unpack(f"<{len(one) // 4}f", one) for one in raw])


def embed(embedder: Stepping, *inputs: Payload) -> torch.Tensor:
    return vectors(embedder.answer({"inputs": list(inputs)}).embeddings)


def hidden_states(path: Path, text: str) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")
    with torch.inference_mode():
        return AutoModel.from_pretrained(path).eval()(tokens.input_ids).last_hidden_state[0]


def test_without_further_files_the_mean_is_normalised(embedder: Stepping, encoder: Path) -> None:
    mean = hidden_states(encoder, TEXTS[2]).mean(dim=0)
    torch.testing.assert_close(embed(embedder, TEXTS[2])[0], mean / mean.norm(), atol=1e-5, rtol=0)


def test_a_text_has_the_same_embedding_alone_and_in_a_batch(embedder: Stepping) -> None:
    alone = torch.cat([embed(embedder, text) for text in TEXTS])
    torch.testing.assert_close(embed(embedder, *TEXTS), alone, atol=1e-5, rtol=0)


def test_several_requests_are_embedded_in_one_step_each_with_its_own(embedder: Stepping) -> None:
    alone = [embed(embedder, *texts) for texts in (TEXTS[:1], TEXTS[1:], TEXTS)]
    ids = [embedder.submit({"inputs": texts}) for texts in (TEXTS[:1], TEXTS[1:], TEXTS)]
    embedder.step()
    for request_id, expected in zip(ids, alone, strict=True):
        torch.testing.assert_close(vectors(embedder.answers[request_id].embeddings), expected, atol=1e-5, rtol=0)


def test_a_large_request_takes_several_steps_and_comes_in_order(embedder: Stepping) -> None:
    texts = [f"{'the quick ' * (number % 40)}{number}" for number in range(EMBEDDING_INPUTS_PER_JOB)]
    request_id = embedder.submit({"inputs": texts})
    embedder.step()
    assert not embedder.answers[request_id].ended
    embedder.finish()
    got = vectors(embedder.answers[request_id].embeddings)
    for place in (0, 19, 40, 63):
        torch.testing.assert_close(got[place], embed(embedder, texts[place])[0], atol=1e-5, rtol=0)


def test_a_request_of_many_inputs_does_not_hold_up_a_small_one_for_ever(embedder: Stepping) -> None:
    large = embedder.submit({"inputs": ["the quick " * 15] * 64})
    small = embedder.submit({"inputs": ["the"]})
    embedder.finish()
    assert embedder.answers[large].ended
    assert embedder.answers[small].ended


def test_token_ids_are_embedded_as_they_are(embedder: Stepping, encoder: Path) -> None:
    ids = AutoTokenizer.from_pretrained(encoder)(TEXTS[1]).input_ids
    torch.testing.assert_close(embed(embedder, ids), embed(embedder, TEXTS[1]), atol=1e-5, rtol=0)


def test_what_is_computed_together_has_similar_lengths_and_stays_within_its_tokens() -> None:
    assert batches_of_similar_length([3, 100, 4, 700, 90, 3], 200) == [[0, 5, 2], [4, 1], [3]]


def test_usage_counts_the_tokens_of_all_inputs(embedder: Stepping) -> None:
    answer = embedder.answer({"inputs": [[2, 3, 4], [5]]})
    assert answer.usage == Usage(prompt_tokens=4, completion_tokens=0)
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("dimensions", [1, 5, 32])
def test_fewer_dimensions_are_the_first_ones_made_of_unit_length_again(embedder: Stepping, dimensions: int) -> None:
    whole = embed(embedder, *TEXTS)[:, :dimensions]
    got = vectors(embedder.answer({"inputs": TEXTS, "dimensions": dimensions}).embeddings)
    torch.testing.assert_close(got, whole / whole.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


def test_more_dimensions_than_the_model_has_are_refused(embedder: Stepping) -> None:
    with pytest.raises(InvalidRequest, match="have 32 dimensions") as caught:
        embedder.submit({"inputs": TEXTS, "dimensions": 33})
    assert caught.value.param == "dimensions"


def test_a_model_that_names_its_sizes_is_cut_to_those_alone(save_model: SaveModel, load: Load) -> None:
    embedder = load(save_model("bert", AutoModel, matryoshka_dimensions=[8, 16]))
    assert vectors(embedder.answer({"inputs": TEXTS, "dimensions": 8}).embeddings).shape == (4, 8)
    with pytest.raises(InvalidRequest, match="cut to 8, 16 dimensions"):
        embedder.submit({"inputs": TEXTS, "dimensions": 9})


def test_what_is_not_of_unit_length_whole_is_not_when_it_is_cut(save_model: SaveModel, load: Load) -> None:
    path = save_model("bert", AutoModel)
    as_sentence_transformer(path, {"pooling_mode_mean_tokens": True}, "Pooling")
    embedder = load(path)
    got = vectors(embedder.answer({"inputs": TEXTS, "dimensions": 3}).embeddings)
    torch.testing.assert_close(got, embed(embedder, *TEXTS)[:, :3], atol=1e-5, rtol=0)


def test_documents_are_ranked_by_their_likeness_to_the_query(embedder: Stepping) -> None:
    answer = embedder.answer({"query": TEXTS[1], "documents": TEXTS})
    made = embed(embedder, *TEXTS)
    assert answer.result is not None
    torch.testing.assert_close(torch.tensor(answer.result["scores"]), made @ made[1], atol=1e-5, rtol=0)
    counted = embedder.answer({"inputs": [TEXTS[1], *TEXTS]}).usage
    assert answer.usage == counted


@pytest.mark.parametrize(("query", "documents", "param"), [("", ["x"], "query"), ("x", [""], "documents")])
def test_an_empty_text_is_not_ranked(embedder: Stepping, query: str, documents: list[str], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        embedder.submit({"query": query, "documents": documents})
    assert caught.value.param == param


def test_an_abort_forgets_the_request(embedder: Stepping) -> None:
    request_id = embedder.submit({"inputs": TEXTS})
    embedder.abort(request_id)
    assert not embedder.stepper.has_work()


@pytest.mark.parametrize("inputs", [[], [""], [[]], ["fine", ""], [[384]], [[1.5]], [7], None, ["\ud83d"]])
def test_what_cannot_be_embedded_is_said(embedder: Stepping, inputs: Any) -> None:
    with pytest.raises(InvalidRequest):
        embedder.submit({"inputs": inputs})


def test_an_input_longer_than_the_model_is_refused(embedder: Stepping) -> None:
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 256 tokens"):
        embedder.submit({"inputs": ["fine", [5] * 257]})


@pytest.mark.parametrize("payload", [{"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}])
def test_an_embedding_model_does_not_chat(embedder: Stepping, payload: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="does not support"):
        embedder.submit(payload)


def as_sentence_transformer(path: Path, pooling: dict[str, Any], *kinds: str) -> None:
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": f"{place}_{kind}" if place else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(["Transformer", *kinds])
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda hidden: hidden[0]),
        ({"pooling_mode_mean_tokens": True}, lambda hidden: hidden.mean(dim=0)),
        ({"pooling_mode": "max"}, lambda hidden: hidden.amax(dim=0)),
        ({"pooling_mode": "lasttoken"}, lambda hidden: hidden[-1]),
    ],
)
def test_pooling_is_the_one_that_the_model_names(
    save_model: SaveModel, load: Load, pooling: dict[str, Any], expected: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    path = save_model("bert", AutoModel)
    as_sentence_transformer(path, pooling, "Pooling")
    got = embed(load(path), TEXTS[1], TEXTS[2])[0]
    torch.testing.assert_close(got, expected(hidden_states(path, TEXTS[1])), atol=1e-5, rtol=0)


def test_the_length_limit_is_the_model_s_own(save_model: SaveModel, load: Load) -> None:
    path = save_model("bert", AutoModel)
    as_sentence_transformer(path, {"pooling_mode_mean_tokens": True}, "Pooling", "Normalize")
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    embedder = load(path)
    assert embedder.info.max_model_len == 20
    assert math.isclose(embed(embedder, "the")[0].norm().item(), 1, abs_tol=1e-5)
    with pytest.raises(ContextLengthExceeded):
        embedder.submit({"inputs": [[5] * 21]})


def test_an_answer_that_fails_loses_no_other(
    save_model: SaveModel, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model("bert", AutoModel)
    as_sentence_transformer(path, {"pooling_mode_mean_tokens": True}, "Pooling")
    embedder = load(path)
    names = [embedder.submit({"inputs": ["the fox"]}) for _ in range(3)]
    answer = embedder.generation._answer

    def failing(batch: Any) -> Any:
        if batch.id == names[1]:
            raise RuntimeError("broken")
        return answer(batch)

    monkeypatch.setattr(embedder.generation, "_answer", failing)
    embedder.finish()
    first, failed, last = (embedder.answers[name] for name in names)
    assert first.embeddings == last.embeddings is not None
    assert failed.error is not None
    assert failed.error.code == "engine_error"


def test_a_text_that_can_never_fit_is_not_even_tokenized(
    save_model: SaveModel, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model("bert", AutoModel)
    as_sentence_transformer(path, {"pooling_mode_mean_tokens": True}, "Pooling")
    embedder = load(path)
    monkeypatch.setattr(embedder.generation._reader, "_encoder", None)
    with pytest.raises(ContextLengthExceeded, match="maximum context length"):
        embedder.submit({"inputs": ["the " * 1_000_000]})


@pytest.mark.parametrize(
    ("pooling", "kinds", "why"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, ("Pooling",), "weightedmean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("Pooling",), "pooling"),
        ({"pooling_mode_mean_tokens": True}, ("Pooling", "Dense"), "Dense"),
    ],
)
def test_what_would_give_other_vectors_is_refused(
    save_model: SaveModel, load: Load, pooling: dict[str, Any], kinds: tuple[str, ...], why: str
) -> None:
    path = save_model("bert", AutoModel)
    as_sentence_transformer(path, pooling, *kinds)
    with pytest.raises(StartupError, match=why):
        load(path)
