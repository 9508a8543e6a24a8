"""Tokens of the real models: what is counted is what a reply's usage says."""

from typing import Any

import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, ToolParam

from tests.e2e.conftest import CHAT, EMBEDDINGS
from tests.e2e.wire import error_of, post
from tests.processes import Stack

pytestmark = pytest.mark.model
ASKED: list[MessageParam] = [{"role": "user", "content": "Say hello."}]
TOOLS: list[ToolParam] = [
    {"name": "weather", "description": "of a city", "input_schema": {"type": "object", "properties": {}}}
]


def tokenize(stack: Stack, model: str, **fields: Any) -> dict[str, Any]:
    response = post(stack, "/tokenize", {"model": model, "return_token_strs": True, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert len(answer["tokens"]) == len(answer["token_strs"]) == answer["count"]
    return answer


@pytest.mark.parametrize("model", [CHAT, EMBEDDINGS])
def test_tokens_become_their_text_again(model_stack: Stack, model: str) -> None:
    tokens = tokenize(model_stack, model, prompt="the sea is blue", add_special_tokens=False)["tokens"]
    response = post(model_stack, "/detokenize", {"model": model, "tokens": tokens})
    assert response.json() == {"prompt": "the sea is blue"}


def test_special_tokens_are_added_unless_they_are_not_wanted(model_stack: Stack) -> None:
    with_them = tokenize(model_stack, EMBEDDINGS, prompt="blue")["token_strs"]
    assert with_them == ["[CLS]", "blue", "[SEP]"]
    assert tokenize(model_stack, EMBEDDINGS, prompt="blue", add_special_tokens=False)["token_strs"] == ["blue"]


def test_a_conversation_has_the_tokens_that_its_reply_counts(model_stack: Stack) -> None:
    body = {"model": CHAT, "messages": ASKED, "max_tokens": 1}
    usage = post(model_stack, "/v1/chat/completions", body).json()["usage"]
    assert tokenize(model_stack, CHAT, messages=ASKED)["count"] == usage["prompt_tokens"]


def test_anthropic_s_count_is_the_input_of_the_message(model_stack: Stack) -> None:
    with Anthropic(base_url=model_stack.url, api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": CHAT, "messages": ASKED, "system": "Be brief.", "tools": TOOLS}
        counted = client.messages.count_tokens(**asked).input_tokens
        message = client.messages.create(**asked, max_tokens=1)
    assert counted == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def test_ids_outside_the_vocabulary_are_refused(model_stack: Stack) -> None:
    response = post(model_stack, "/detokenize", {"model": CHAT, "tokens": [1, 2**30]})
    assert (response.status_code, error_of(response)["param"]) == (400, "tokens")


def test_an_embedding_model_has_no_conversations(model_stack: Stack) -> None:
    response = post(model_stack, "/tokenize", {"model": EMBEDDINGS, "messages": ASKED})
    assert (response.status_code, error_of(response)["code"]) == (400, "unsupported_model")
