"""/tokenize and /detokenize, as vLLM serves them, on a worker whose tokens are words."""

import json
from typing import Any

import pytest

from tests.e2e.scripted_worker import MAX_MODEL_LEN
from tests.e2e.wire import error_of, post
from tests.processes import Stack

ASKED = {"role": "user", "content": "hi"}


def tokenize(stack: Stack, **fields: Any) -> dict[str, Any]:
    response = post(stack, "/tokenize", {"model": "echo", **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def payload_of(stack: Stack, **fields: Any) -> dict[str, Any]:
    """That of a conversation, which the worker says in the place of its tokens."""
    payload: dict[str, Any] = json.loads("".join(tokenize(stack, return_token_strs=True, **fields)["token_strs"]))
    return payload


def test_a_text_has_tokens(scripted: Stack) -> None:
    expected = {"count": 3, "max_model_len": MAX_MODEL_LEN, "tokens": [0, 1, 2], "token_strs": None}
    assert tokenize(scripted, prompt="one two three") == expected
    assert tokenize(scripted, prompt="one two", return_token_strs=True)["token_strs"] == ["one", "two"]
    assert tokenize(scripted, prompt="")["tokens"] == []


def test_a_conversation_has_those_of_its_prompt(scripted: Stack) -> None:
    assert payload_of(scripted, messages=[ASKED]) == {"messages": [ASKED], "add_special_tokens": False}
    tool = {"type": "function", "function": {"name": "f"}}
    payload = payload_of(
        scripted,
        messages=[ASKED],
        tools=[tool],
        add_generation_prompt=False,
        add_special_tokens=True,
        chat_template_kwargs={"a": 1},
    )
    assert payload["tools"] == [{"name": "f"}]
    assert (payload["add_generation_prompt"], payload["add_special_tokens"]) == (False, True)
    assert payload["template"] == {"a": 1}


def test_tokens_become_a_text(scripted: Stack) -> None:
    response = post(scripted, "/detokenize", {"model": "echo", "tokens": [5, 6]})
    assert response.json() == {"prompt": "5 6"}


REFUSED: list[tuple[str, dict[str, Any], str | None]] = [
    ("/tokenize", {}, None),
    ("/tokenize", {"prompt": "x", "messages": [ASKED]}, None),
    ("/tokenize", {"prompt": ["x"]}, "prompt"),
    ("/tokenize", {"prompt": "x", "tools": []}, None),
    ("/tokenize", {"prompt": "x", "chat_template": "{{ messages }}"}, "chat_template"),
    ("/tokenize", {"prompt": "x", "max_tokens": 1}, "max_tokens"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"messages": [ASKED], "continue_final_message": True}, None),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ("/detokenize", {"tokens": [2**31]}, "tokens"),
]


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED, ids=str)
def test_what_is_no_such_request_is_refused(
    scripted: Stack, path: str, fields: dict[str, Any], param: str | None
) -> None:
    response = post(scripted, path, {"model": "echo", **fields})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_a_model_that_nobody_serves_is_not_found(scripted: Stack) -> None:
    response = post(scripted, "/tokenize", {"model": "nobody", "prompt": "x"})
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


def test_a_model_that_has_no_tokens_says_so(echo_stack: Stack) -> None:
    for path, fields in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        response = post(echo_stack, path, {"model": "echo", **fields})
        assert (response.status_code, error_of(response)["code"]) == (400, "unsupported_model")
