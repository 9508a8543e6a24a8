"""What a request may say, and that nothing is ignored in silence."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.schemas.base import Unsupported
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.completion import CompletionRequest
from gateway.schemas.embedding import EmbeddingRequest
from shared.messages import Structured

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("store", True),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(Unsupported) as refusal:
        ChatCompletionRequest.model_validate(CHAT | {field: value})
    assert refusal.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", None),
        ("reasoning_effort", "none"),
        ("logprobs", None),
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
        ("top_logprobs", 1),  # without logprobs
        ("top_logprobs", 21),
        ("top_logprobs", -1),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"one": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 1, "01": 2}),  # one id
        ("min_tokens", -1),
        ("stop_token_ids", ["1"]),
        ("response_format", {"type": "yaml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": "y"}}),
        ("structured_outputs", {}),
        ("structured_outputs", {"regex": "a", "choice": ["b"]}),
        ("structured_outputs", {"choice": []}),
        ("structured_outputs", {"json": "{"}),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "function", "function": {}}]),
        ("tools", [{"type": "custom", "custom": {"name": "x"}}]),
        ("tools", [{"type": "function", "function": {"name": "a b"}}]),
        ("tool_choice", "required"),  # without tools
        ("tool_choice", NAMED),
        ("tool_choice", "maybe"),
        ("reasoning_effort", "much"),
        ("continue_final_message", True),  # the last message is the user's
        ("messages", [{"role": "tool", "content": "4"}]),
        ("messages", [{"role": "user", "content": "x", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}]),
        ("messages", [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}]),
        ("model", ""),
    ],
)
def test_what_is_wrong_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate(CHAT | {field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL, TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        {
            "continue_final_message": True,
            "add_generation_prompt": True,
            "messages": [{"role": "assistant", "content": "a"}],
        },
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate(CHAT | fields)


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        (None, {"mode": "auto", "names": None}),
        ("auto", {"mode": "auto", "names": None}),
        ("required", {"mode": "required", "names": None}),
        (NAMED, {"mode": "required", "names": ["f"]}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            {"mode": "auto", "names": ["f"]},
        ),
    ],
)
def test_every_choice_of_tools_is_a_mode_and_names_on_the_wire(choice: Any, wire: Any) -> None:
    payload = ChatCompletionRequest.model_validate(CHAT | {"tools": [TOOL], "tool_choice": choice}).payload()
    assert payload["tool_choice"] == wire
    assert [tool["name"] for tool in payload["tools"]] == ["f"]


def test_tools_that_must_not_be_called_do_not_reach_the_model() -> None:
    payload = ChatCompletionRequest.model_validate(CHAT | {"tools": [TOOL], "tool_choice": "none"}).payload()
    assert set(payload) == {"messages"}


@pytest.mark.parametrize(
    ("fields", "structured"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Structured("json", True, "response_format")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            Structured("json", SCHEMA, "response_format"),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Structured("json", SCHEMA)),
        ({"structured_outputs": {"json": '{"type": "object"}'}}, Structured("json", {"type": "object"})),
        ({"structured_outputs": {"json_object": True}}, Structured("json", True)),
        ({"structured_outputs": {"regex": "a+"}}, Structured("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Structured("choice", ["a", "b"])),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Structured("grammar", 'root ::= "a"')),
    ],
)
def test_every_form_of_a_constraint_is_one_on_the_wire(fields: dict[str, Any], structured: Any) -> None:
    assert ChatCompletionRequest.model_validate(CHAT | fields).structured == structured


def test_the_best_replies_cannot_be_streamed_nor_be_fewer_than_asked_for() -> None:
    asked = {"model": "m", "prompt": "a", "n": 2}
    assert CompletionRequest.model_validate(asked | {"best_of": 3}).candidates == 3
    for wrong in ({"best_of": 1}, {"best_of": 3, "stream": True}):
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate(asked | wrong)


def test_text_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = ChatCompletionRequest.model_validate(CHAT | {"messages": [{"role": "user", "content": parts}]})
    assert body.messages[0].for_template() == {"role": "user", "content": "a\nb"}


SENT_BACK: dict[str, Any] = {
    "role": "assistant",
    "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "id": "lc_1", "unknown": None}],
    "tool_calls": [
        {"id": "c", "index": 0, "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}},
        {"id": "d", "type": None, "function": {"name": "f", "arguments": "{}"}, "provider_specific_fields": {}},
    ],
    "annotations": [],
    "parsed": {"a": 1},
    "provider_specific_fields": {"refusal": None},
    "audio": None,
    "function_call": None,
    "of_a_client": None,
}


def test_what_clients_send_back_of_a_reply_does_not_reach_the_template() -> None:
    body = ChatCompletionRequest.model_validate(CHAT | {"messages": [SENT_BACK]})
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ("c", "d")]
    assert body.messages[0].for_template() == {"role": "assistant", "content": "a", "tool_calls": calls}


def test_a_refusal_is_told_after_what_was_said() -> None:
    message = {"role": "assistant", "content": "a", "refusal": "b"}
    body = ChatCompletionRequest.model_validate(CHAT | {"messages": [message, message | {"content": None}]})
    assert [one.for_template()["content"] for one in body.messages] == ["a\nb", "b"]


@pytest.mark.parametrize(
    ("fields", "thoughts"),
    [
        ({"reasoning": "hm"}, "hm"),
        ({"reasoning_content": "hm", "reasoning": "hm"}, "hm"),
        ({"reasoning_content": "", "reasoning": "hm"}, ""),
    ],
)
def test_thoughts_are_read_by_either_name(fields: dict[str, Any], thoughts: str) -> None:
    body = ChatCompletionRequest.model_validate(CHAT | {"messages": [{"role": "assistant", "content": "a"} | fields]})
    assert body.messages[0].for_template()["reasoning_content"] == thoughts


UNKNOWN: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "x", "weight": 1}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "weight": 1}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": NAMED["function"], "weight": 1}]}]},
    {"tools": [TOOL | {"weight": 1}]},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f", "weight": 1}}},
]


@pytest.mark.parametrize("fields", UNKNOWN)
def test_what_is_unknown_is_refused_at_any_depth(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="weight"):
        ChatCompletionRequest.model_validate(CHAT | fields)


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
