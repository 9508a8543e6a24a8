"""One name for two models, over every protocol."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.e2e.conftest import started
from tests.e2e.test_models_and_health import get
from tests.e2e.wire import chat, error_of, post
from tests.processes import Process, Stack

SHARES = {"qwen": 60, "llama": 40}
SAID = [{"role": "user", "content": "a b"}]
WAYS = {
    "/v1/chat/completions": {"messages": SAID, "max_tokens": 2},
    "/v1/responses": {"input": "a b", "max_output_tokens": 2},
    "/v1/messages": {"messages": SAID, "max_tokens": 2},
    "/v1/completions": {"prompt": "a b", "max_tokens": 2},
}
workers: dict[str, Process] = {}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    async def start(stack: Stack) -> None:
        await stack.gateway("--aliases", json.dumps({"chat": SHARES, "idle": {"nobody": 1}}))
        for model in SHARES:
            workers[model] = await stack.worker("--model-names", model)
        await stack.models("chat", *SHARES)

    with started(tmp_path_factory, start) as stack:
        yield stack


def answered_by(stack: Stack, path: str, user: str | None) -> str:
    who: dict[str, Any] = {} if user is None else {"user": user}
    if user is not None and path == "/v1/messages":
        who = {"metadata": {"user_id": user}}
    response = post(stack, path, {"model": "chat", **WAYS[path], **who})
    assert response.status_code == 200, response.text
    return str(response.json()["model"])


@pytest.mark.parametrize("path", WAYS)
def test_a_user_is_answered_by_one_model_whatever_the_protocol(two: Stack, path: str) -> None:
    users = ["anna", "bert", "carl", "dora", "emil", "fred"]
    at = {user: answered_by(two, "/v1/chat/completions", user) for user in users}
    assert set(at.values()) == set(SHARES)
    assert {user: answered_by(two, path, user) for user in users} == at


def test_without_a_user_both_answer_and_the_reply_says_who(two: Stack) -> None:
    counts = Counter(answered_by(two, "/v1/chat/completions", None) for _ in range(40))
    assert set(counts) == set(SHARES)


def test_it_is_listed_with_its_shares(two: Stack) -> None:
    card = get(two, "/v1/models/chat").json()
    assert (card["shares"], card["status"], card["max_model_len"]) == (SHARES, {"value": "loaded"}, 8192)
    assert get(two, "/v1/models/idle").status_code == 404


def test_one_with_nothing_behind_it_is_told_by_its_model(two: Stack) -> None:
    refused = post(two, "/v1/chat/completions", chat("a") | {"model": "idle"})
    assert (refused.status_code, error_of(refused)["message"]) == (404, "The model 'nobody' does not exist.")


async def test_while_one_is_away_the_other_takes_its_users(two: Stack) -> None:
    """What was given to it just as it left waits for its next worker, which here nobody does for long."""
    workers["llama"].terminate()
    brief = {"x-request-timeout": "2"}

    def models() -> set[str | None]:
        bodies = [chat("a b", model="chat", max_tokens=2, user=f"user-{n}") for n in range(10)]
        return {post(two, "/v1/chat/completions", body, **brief).json().get("model") for body in bodies}

    await wait_until(lambda: models() == {"qwen"}, description="the other answers")
