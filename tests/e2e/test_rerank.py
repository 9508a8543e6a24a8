"""Reranking, in the shape of Jina, Cohere and vLLM."""

from typing import Any

import pytest

from tests.e2e.conftest import CHAT, EMBEDDINGS
from tests.e2e.wire import error_of, post
from tests.processes import Stack

DOCUMENTS = ["nothing of it", "the quick fox", {"text": "a fox"}]


def rerank(stack: Stack, path: str = "/v1/rerank", **fields: Any) -> dict[str, Any]:
    response = post(stack, path, {"model": "echo", "query": "quick fox", "documents": DOCUMENTS, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_the_best_comes_first_with_its_place_and_its_text(scripted: Stack, path: str) -> None:
    answer = rerank(scripted, path)
    assert set(answer) == {"id", "model", "usage", "results"}
    assert answer["id"].startswith("rerank-")
    assert answer["model"] == "echo"
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert answer["results"] == [
        {"index": 1, "document": {"text": "the quick fox"}, "relevance_score": 2.0},
        {"index": 2, "document": {"text": "a fox"}, "relevance_score": 1.0},
        {"index": 0, "document": {"text": "nothing of it"}, "relevance_score": 0.0},
    ]


def test_the_best_few_are_returned_without_their_texts_if_so_asked(scripted: Stack) -> None:
    assert rerank(scripted, top_n=1, return_documents=False)["results"] == [{"index": 1, "relevance_score": 2.0}]
    for all_of_them in (0, 3, 99, None):
        assert len(rerank(scripted, top_n=all_of_them)["results"]) == 3


def test_many_documents_are_ranked_by_several_jobs_as_if_by_one(scripted: Stack) -> None:
    documents = [f"{'fox ' if number % 50 == 7 else ''}{number}" for number in range(200)]
    answer = rerank(scripted, documents=documents)
    assert [row["index"] for row in answer["results"][:4]] == [7, 57, 107, 157]
    assert sorted(row["index"] for row in answer["results"]) == list(range(200))
    assert answer["usage"]["total_tokens"] == 4 * 7


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": None}, "query"),
        ({"query": ""}, "query"),
        ({"query": ["x"]}, "query"),
        ({"query": "x" * (2**17 + 1)}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "x"}, "documents"),
        ({"documents": [1]}, "documents"),
        ({"documents": [{"text": "x", "title": "y"}]}, "documents"),
        ({"documents": ["x"] * 2049}, "documents"),
        ({"top_n": -1}, "top_n"),
        ({"max_chunks_per_doc": 3}, "max_chunks_per_doc"),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_no_such_request_is_refused(scripted: Stack, fields: dict[str, Any], param: str) -> None:
    body = {"model": "echo", "query": "quick fox", "documents": DOCUMENTS, **fields}
    response = post(scripted, "/v1/rerank", body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_the_echo_engine_does_not_rank(echo_stack: Stack) -> None:
    response = post(echo_stack, "/rerank", {"model": "echo", "query": "x", "documents": ["y"]})
    assert (response.status_code, error_of(response)["code"]) == (400, "unsupported_model")


@pytest.mark.model
def test_an_embedding_model_ranks_by_likeness(model_stack: Stack) -> None:
    documents = ["Paris is the capital of France.", "Cats sleep all day.", "The sea is blue."]
    answer = rerank(model_stack, model=EMBEDDINGS, query="Which colour has the ocean?", documents=documents)
    assert answer["results"][0]["index"] == 2
    assert all(-1 <= row["relevance_score"] <= 1 for row in answer["results"])
    assert answer["usage"]["total_tokens"] > 20


@pytest.mark.model
def test_a_generation_model_does_not_rank(model_stack: Stack) -> None:
    response = post(model_stack, "/rerank", {"model": CHAT, "query": "x", "documents": ["y"]})
    assert (response.status_code, error_of(response)["code"]) == (400, "unsupported_model")
