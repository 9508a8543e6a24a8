"""What a client sends must not hold the event loop: who stands still for 2.5 s loses its lease, and its streams."""

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.anthropic.schemas import MessagesRequest
from gateway.bodies import LARGE, check_media, parse
from gateway.schemas import rerank as _rerank  # noqa: F401  so that all subclasses are there
from gateway.schemas import tokens as _tokens  # noqa: F401
from gateway.schemas.base import MAX_FREE_BYTES, Strict
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.completion import CompletionRequest
from gateway.schemas.embedding import EmbeddingRequest
from shared.errors import LONGEST_MESSAGE, LONGEST_PARAM, InvalidRequest, TokenbusError, UnsupportedMediaType

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
LISTS = [[]] * (LARGE // 2)


def refused(body: Any, schema: Any = ChatCompletionRequest) -> TokenbusError:
    with pytest.raises(TokenbusError) as caught:
        parse(json.dumps(body).encode(), schema)
    return caught.value


@pytest.fixture
def collections() -> Iterator[list[str]]:
    """What the garbage collector does."""
    seen: list[str] = []

    def see(phase: str, _: Any) -> None:
        seen.append(phase)

    gc.callbacks.append(see)
    yield seen
    gc.callbacks.remove(see)


@pytest.mark.parametrize("name", ["metadata", "unknown"])
def test_a_large_body_is_read_without_the_garbage_collector(collections: list[str], name: str) -> None:
    raw = json.dumps(CHAT | {name: {"x": LISTS}}).encode()
    collections.clear()
    with pytest.raises(InvalidRequest):
        parse(raw, ChatCompletionRequest)
    assert len(collections) < 10  # once it is allowed again
    assert gc.isenabled()


def test_what_was_refused_is_not_kept_by_the_refusal() -> None:
    gc.collect()
    before = len(gc.get_objects())
    error = refused(CHAT | {"metadata": {"x": LISTS}})
    assert len(gc.get_objects()) - before < 1000
    assert error.param == "metadata"


def models(of: type[Strict] = Strict) -> Iterator[type[Strict]]:
    for model in of.__subclasses__():
        yield model
        yield from models(model)


MODELS = sorted(set(models()), key=lambda model: model.__name__)  # some have several bases


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_thousand_unknown_fields_are_one_error(model: type[Strict]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({f"field {number}": 1 for number in range(1000)})
    kinds = [error["type"] for error in caught.value.errors()]
    assert kinds.count("extra_forbidden") == 1
    assert len(kinds) <= len(model.model_fields) + 1


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_null_is_the_same_as_leaving_out_also_where_nothing_is_known(model: type[Strict]) -> None:
    """Libraries write down all that their types have."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate({f"field {number}": None for number in range(1000)} | {"known to nobody": 1})
    kinds = [error["loc"] for error in caught.value.errors() if error["type"] == "extra_forbidden"]
    assert kinds == [("known to nobody",)]


@pytest.mark.parametrize("wrong", [[1.5] * 3000, [{"type": "text"}] * 3000, [{"type": []}] * 3000, [{}] * 3000])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_long_list_of_wrong_things_is_not_an_error_for_each(model: type[Strict], wrong: Any) -> None:
    refused = getattr(model, "refused", {})
    for name, field in model.model_fields.items():
        if name in refused:
            continue
        with pytest.raises(ValidationError) as caught:
            model.model_validate({field.alias or name: wrong, "model": 0})
        assert caught.value.error_count() < 30, name


def deep(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


FREE = ["metadata", "prompt_cache_options", "chat_template_kwargs"]


def with_parameters(name: str, parameters: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("value", [{"a": "x" * MAX_FREE_BYTES}, deep(300)], ids=["large", "deep"])
def test_what_is_passed_on_as_it_is_is_bounded(value: Any) -> None:
    """Templates, grammars and parsers make objects of it, in the worker too: 30 MB of them cost three workers their
    leases, one after the other."""
    for name in FREE:
        assert refused(CHAT | {name: value}).param == name
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    assert refused(CHAT | {"response_format": schema}).param == "response_format"
    assert refused(CHAT | {"structured_outputs": {"json": value}}).param == "structured_outputs"
    assert refused(CHAT | {"tools": [with_parameters("f", value)]}).param == "tools"


def test_many_tools_are_bounded_together() -> None:
    tools = [with_parameters(f"f{number}", {"a": "x" * 2000}) for number in range(600)]
    assert refused(CHAT | {"tools": tools}).param == "tools"
    parse(json.dumps(CHAT | {"tools": tools[:100]}).encode(), ChatCompletionRequest)


def test_the_arguments_of_a_call_are_bounded() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": " " * (MAX_FREE_BYTES + 1)}}
    assert refused(CHAT | {"messages": [{"role": "assistant", "tool_calls": [call]}]}).param == "messages"
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "x" * MAX_FREE_BYTES}}
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": [use]}]}
    assert refused(body, MessagesRequest).param == "messages"


@pytest.mark.parametrize("name", ["function_call", "audio"])
def test_parts_of_a_message_that_no_prompt_can_show_are_refused(name: str) -> None:
    said = {"role": "assistant", "content": "x", name: {"name": "f", "arguments": "{}"}}
    assert f"messages.0.{name}" in refused(CHAT | {"messages": [said]}).message
    parse(json.dumps(CHAT | {"messages": [said | {name: None}]}).encode(), ChatCompletionRequest)


def test_an_error_does_not_send_megabytes_back() -> None:
    for body in (
        CHAT | {"k" * 10_000: 1},
        CHAT | {"logit_bias": {"k" * 10_000: 1}},
        CHAT | {"messages": [{"role": "user", "content": [{"type": "k" * 10_000}]}]},
    ):
        error = refused(body)
        assert len(error.message) <= LONGEST_MESSAGE + 3
        assert len(error.param or "") <= LONGEST_PARAM + 3


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"content": "a"}]}, "messages.0.role"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 1}}},
         "response_format.json_schema.schema"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"stop": ["a", 1]}, "stop.1"),
        ({"structured_outputs": {"json": 3}}, "structured_outputs.json"),
        ({"messages": 3, "n": 0}, "n"),
    ],
    ids=str,
)  # fmt: skip
def test_the_place_of_an_error_is_one_that_the_client_knows(fields: dict[str, Any], place: str) -> None:
    error = refused(CHAT | fields)
    assert error.message.startswith(f"Invalid value for '{place}': ")
    assert error.param == place.partition(".")[0]


def test_a_block_s_type_is_not_taken_for_its_field() -> None:
    block = {"type": "text", "text": "a", "citations": [1]}
    error = refused(
        {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [block]}]}, MessagesRequest
    )
    assert error.message.startswith("Invalid value for 'messages.0.content.0.citations': ")


@pytest.mark.parametrize(("schema", "name"), [(CompletionRequest, "prompt"), (EmbeddingRequest, "input")])
@pytest.mark.parametrize("given", [["a"] * 3000, [[1]] * 3000, [{}] * 3000], ids=["texts", "ids", "wrong"])
def test_too_many_inputs_are_counted_before_they_are_looked_at(schema: Any, name: str, given: Any) -> None:
    error = refused({"model": "m", name: given}, schema)
    assert error.message == f"Invalid value for '{name}': at most 2048 inputs are allowed"


@pytest.mark.parametrize("name", ["seed", "max_tokens", "top_k", "min_tokens", "max_completion_tokens"])
def test_integers_that_are_none_for_the_parser_are_refused(name: str) -> None:
    parse(json.dumps(CHAT | {name: 2**64 - 1}).encode(), ChatCompletionRequest)
    assert refused(CHAT | {name: 2**64}).param == name


def test_a_schema_in_a_text_has_to_be_one() -> None:
    for text in ("0", "[]", "false", '"x"', "null", "{"):
        error = refused(CHAT | {"structured_outputs": {"json": text}})
        assert error.message.startswith("Invalid value for 'structured_outputs.json': it is a string, but not one")
    for text in ("{}", "true"):
        parse(json.dumps(CHAT | {"structured_outputs": {"json": text}}).encode(), ChatCompletionRequest)


@pytest.mark.parametrize("value", [0, 0.0, 1, True, "", []])
def test_what_can_only_be_false_is_not_nought(value: Any) -> None:
    tool = {"name": "f", "input_schema": {}, "defer_loading": value}
    assert refused(CHAT | {"max_tokens": 1, "tools": [tool]}, MessagesRequest).param == "tools"
    parse(json.dumps(CHAT | {"max_tokens": 1, "tools": [tool | {"defer_loading": False}]}).encode(), MessagesRequest)


JSON_TYPES = [b"application/json", b"application/json; charset=utf-8", b"APPLICATION/JSON", b"", b"application/x+json"]


@pytest.mark.parametrize("kind", JSON_TYPES, ids=repr)
def test_json_is_read(kind: bytes) -> None:
    check_media({b"content-type": kind, b"content-encoding": b"identity"})
    check_media({})


@pytest.mark.parametrize(
    "head",
    [
        {b"content-type": b"text/plain"},
        {b"content-type": b"application/x-www-form-urlencoded"},
        {b"content-type": b"multipart/form-data; boundary=x"},
        {b"content-type": b"json"},
        {b"content-type": b"\xff"},
        {b"content-type": b"application/json", b"content-encoding": b"gzip"},
        {b"content-type": b"application/json", b"content-encoding": b"identity, br"},
    ],
    ids=repr,
)
def test_what_says_that_it_is_something_else_is_not(head: dict[bytes, bytes]) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_media(head)
