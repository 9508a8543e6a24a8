"""What is served, and whether the gateway is well."""

import httpx2
import openai as sdk_module
import pytest
from openai import OpenAI

from tests.e2e.wire import chat, error_of, post
from tests.processes import Stack


def get(stack: Stack, path: str, method: str = "GET") -> httpx2.Response:
    with httpx2.Client(base_url=stack.url, timeout=30) as http:
        return http.request(method, path)


def test_every_name_of_a_worker_is_listed(openai: OpenAI) -> None:
    rows = list(openai.models.list())
    assert [row.id for row in rows] == ["echo", "parrot"]
    assert {(row.object, row.owned_by) for row in rows} == {("model", "tokenbus")}
    assert all(row.created > 1_700_000_000 for row in rows)
    assert {row.model_extra["max_model_len"] for row in rows if row.model_extra} == {8192}


def test_of_the_models_the_first_are_listed_and_nothing_is_ignored(echo_stack: Stack) -> None:
    assert [row["id"] for row in get(echo_stack, "/v1/models?limit=1&beta=true").json()["data"]] == ["echo"]
    for query, name in (("limit=x", "limit"), ("limit=0", "limit"), ("after=x", "after"), ("limit=1&limit=2", "limit")):
        refused = get(echo_stack, f"/v1/models?{query}")
        assert (refused.status_code, error_of(refused)["param"]) == (400, name)
    assert get(echo_stack, "/v1/models/echo?limit=1").status_code == 400


def test_a_query_of_a_request_with_a_body_is_not_ignored_either(echo_stack: Stack) -> None:
    body = chat("a", max_tokens=1)
    assert post(echo_stack, "/v1/chat/completions?api-version=2026-01-01", body).status_code == 200
    refused = post(echo_stack, "/v1/chat/completions?stream=true", body)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "stream")


def test_one_model_can_be_asked_for(openai: OpenAI) -> None:
    assert openai.models.retrieve("parrot").id == "parrot"
    with pytest.raises(sdk_module.NotFoundError) as caught:
        openai.models.retrieve("org/nobody")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("typed", ["Echo", "ecko", "ECHO"])
def test_a_near_miss_says_which_name_was_meant(echo_stack: Stack, typed: str) -> None:
    response = post(echo_stack, "/v1/chat/completions", {**chat("a"), "model": typed})
    assert response.status_code == 404
    assert "Did you mean 'echo'?" in error_of(response)["message"]
    assert "Did you mean 'echo'?" in error_of(get(echo_stack, f"/v1/models/{typed}"))["message"]


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/version"])
def test_health_is_cheap_json(echo_stack: Stack, path: str) -> None:
    response = get(echo_stack, path)
    assert response.status_code == 200
    assert response.headers["x-request-id"]
    assert response.json().get("status", "ok") == "ok"


def test_the_version_is_that_of_the_package(echo_stack: Stack) -> None:
    from shared import __version__

    assert get(echo_stack, "/version").json() == {"version": __version__}


def test_metrics_count_what_was_done(echo_stack: Stack) -> None:
    def value(name: str, labels: str = "") -> float:
        lines = get(echo_stack, "/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(f"tokenbus_{name}{{") and labels in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    before = value("generation_tokens_total"), value("prompt_tokens_total"), value("request_success_total", "length")
    assert post(echo_stack, "/v1/chat/completions", chat("a b", max_tokens=5)).status_code == 200
    after = value("generation_tokens_total"), value("prompt_tokens_total"), value("request_success_total", "length")
    assert [b - a for a, b in zip(before, after, strict=True)] == [5, 2, 1]
    text = get(echo_stack, "/metrics").text
    for stem in (
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "num_requests_running", "num_requests_waiting", "lease_expired_total",
        "job_redelivered_total", "deadletter_total", "fenced_deltas_total", "bus_roundtrip_seconds",
    ):  # fmt: skip
        assert f"tokenbus_{stem}" in text, stem
    assert 'model_name="echo"' in text


def test_browsers_may_ask_across_origins(echo_stack: Stack) -> None:
    with httpx2.Client(base_url=echo_stack.url) as http:
        preflight = http.options(
            "/v1/chat/completions",
            headers={
                "origin": "http://page",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            },
        )
        plain = http.get("/v1/models", headers={"origin": "http://page"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] in ("*", "http://page")
    assert plain.headers["access-control-allow-origin"] in ("*", "http://page")


def test_the_api_describes_itself(echo_stack: Stack) -> None:
    paths = get(echo_stack, "/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"} <= set(paths)
