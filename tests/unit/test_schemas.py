"""What a request may say, and that nothing is ignored in silence."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.schemas.base import Unsupported
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.completion import CompletionRequest
from gateway.schemas.embedding import EmbeddingRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"1": 5}),
        ("store", True),
        ("modalities", ["text", "audio"]),
        ("tool_choice", "required"),
    ],
)
def test_what_is_not_honoured_yet_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(Unsupported) as refusal:
        ChatCompletionRequest.model_validate(CHAT | {field: value})
    assert refusal.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", None),
        ("tools", []),
        ("response_format", {"type": "text"}),
        ("logprobs", False),
        ("logit_bias", {}),
        ("store", False),
        ("tool_choice", "none"),
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("service_tier", "auto"),
        ("temperature", 0),
        ("top_k", -1),
        ("stop", []),
        ("n", None),
    ],
)
def test_what_changes_no_answer_is_accepted(field: str, value: Any) -> None:
    ChatCompletionRequest.model_validate(CHAT | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "1"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("n", 0),
        ("n", True),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", "10"),
        ("stop", 5),
        ("stop", [1]),
        ("stop", [""]),
        ("presence_penalty", 3),
        ("repetition_penalty", 0),
        ("seed", 1.5),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("messages", []),
        ("messages", "hi"),
        ("messages", [{"role": "wizard", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("unheard_of", 1),
        ("model", ""),
    ],
)
def test_what_is_wrong_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate(CHAT | {field: value})


def test_text_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = ChatCompletionRequest.model_validate(CHAT | {"messages": [{"role": "user", "content": parts}]})
    assert body.messages[0].for_template() == {"role": "user", "content": "a\nb"}


def test_an_assistant_message_with_tool_calls_needs_no_content() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ]
    body = ChatCompletionRequest.model_validate(CHAT | {"messages": messages})
    assert body.messages[0].for_template()["tool_calls"] == [call]
    assert body.messages[1].for_template()["tool_call_id"] == "c"


def test_max_completion_tokens_outranks_max_tokens() -> None:
    assert ChatCompletionRequest.model_validate(CHAT | {"max_tokens": 5, "max_completion_tokens": 3}).limit == 3


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_every_form_of_a_prompt_becomes_a_list(prompt: Any, prompts: Any) -> None:
    assert CompletionRequest.model_validate({"model": "m", "prompt": prompt}).prompts == prompts
    assert EmbeddingRequest.model_validate({"model": "m", "input": prompt}).inputs == prompts


@pytest.mark.parametrize("prompt", [None, [], [[]], 5, [1.5], [-1], ["a", 1], [True], {"a": 1}])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    with pytest.raises(ValidationError):
        EmbeddingRequest.model_validate({"model": "m", "input": prompt})


def test_a_completion_without_a_limit_has_openais() -> None:
    assert CompletionRequest.model_validate({"model": "m", "prompt": "a"}).limit == 16
