"""/openapi.json: complete, valid, and without a word about what there is not."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from gateway.description.answers import ANSWERS
from gateway.schemas.base import Unsupported
from tests.description import Description, application, document

DOCUMENT = document("sk-key")
DESCRIBED = Description(DOCUMENT)
OPERATIONS = [(method, path) for path, operations in DOCUMENT["paths"].items() for method in operations]


def nodes(of: Any) -> Iterator[dict[str, Any]]:
    if isinstance(of, dict):
        yield of
    for part in of.values() if isinstance(of, dict) else of if isinstance(of, list) else ():
        yield from nodes(part)


def test_it_is_openapi() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_all_that_it_refers_to_is_in_it() -> None:
    referred = {node["$ref"] for node in nodes(DOCUMENT) if isinstance(node.get("$ref"), str)}
    mapped = {ref for node in nodes(DOCUMENT) for ref in node.get("discriminator", {}).get("mapping", {}).values()}
    assert len(referred) > 50
    for ref in referred | mapped:
        assert DESCRIBED.resolved({"$ref": ref})
    assert "$defs" not in json.dumps(DOCUMENT)


def test_everything_in_it_is_referred_to() -> None:
    said = json.dumps(DOCUMENT)
    for kind in ("schemas", "responses", "headers"):
        for name in DOCUMENT["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in said, name
            assert "__" not in name  # two of one name


async def test_every_route_has_its_row_and_every_row_its_route() -> None:
    app = await application()
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert {(method, route.path_format) for route in routes for method in route.methods or ()} == set(ANSWERS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_an_operation_says_all_that_a_client_needs(method: str, path: str) -> None:
    operation = DOCUMENT["paths"][path][method]
    assert operation["summary"]
    named = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
    assert named == re.findall(r"\{(\w+)\}", path)
    answers = operation["responses"]
    assert {"200", "400", "431", "500", "503"} <= set(answers)
    assert "422" not in answers
    is_open = path in ("/health", "/livez", "/readyz")
    assert ("401" in answers) is not is_open
    assert operation.get("security", []) == ([] if is_open else [{"bearer": []}, {"x-api-key": []}])
    if "requestBody" in operation:
        assert {"404", "413", "415", "429", "504"} <= set(answers)
        assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("Request")


def test_operations_have_names_of_their_own() -> None:
    names = [DOCUMENT["paths"][path][method]["operationId"] for method, path in OPERATIONS]
    assert len(set(names)) == len(names)


def test_without_keys_none_is_asked_for() -> None:
    said = json.dumps(document())
    assert '"security"' not in said
    assert '"401"' not in said


async def models() -> dict[str, type[BaseModel]]:
    app = await application()
    found = [getattr(route.app, "schema", None) for route in app.routes if isinstance(route, APIRoute)]
    return {model.__name__: model for model in found if model is not None}


def accepts(model: type[BaseModel], body: Any) -> bool:
    try:
        model.model_validate(body)
    except (ValidationError, Unsupported):
        return False
    return True


CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
ASKED = {"model": "m", "input": "a"}
FORMAT = {"type": "json_object"}


def saying(**message: Any) -> dict[str, Any]:
    return {**CHAT, "messages": [message]}


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("ChatCompletionRequest", CHAT | {"store": False, "functions": [], "audio": None}, CHAT | {"store": True}),
        ("ChatCompletionRequest", CHAT | {"function_call": "none"}, CHAT | {"function_call": "auto"}),
        ("ChatCompletionRequest", CHAT | {"logit_bias": {"1": 1}}, CHAT | {"logit_bias": {"x": 1}}),
        ("ChatCompletionRequest", CHAT | {"stream": True, "stream_options": {}}, CHAT | {"stream_options": {}}),
        ("ChatCompletionRequest", CHAT | {"logprobs": True, "top_logprobs": 1}, CHAT | {"top_logprobs": 1}),
        ("ChatCompletionRequest", CHAT | {"top_logprobs": 0, "stream_options": None}, CHAT | {"seed": 2**64}),
        ("ChatCompletionRequest", CHAT | {"response_format": FORMAT, "structured_outputs": None},
         CHAT | {"response_format": FORMAT, "structured_outputs": {"regex": "a"}}),
        ("ChatCompletionRequest", CHAT | {"tool_choice": "required", "tools": [TOOL]},
         CHAT | {"tool_choice": "required"}),
        ("ChatCompletionRequest", CHAT | {"tool_choice": "auto"}, CHAT | {"tool_choice": TOOL}),
        ("ChatCompletionRequest", saying(role="tool", content="", tool_call_id="c"), saying(role="tool", content="")),
        ("ChatCompletionRequest", saying(role="assistant", tool_calls=[CALL]), saying(role="user", tool_calls=[CALL])),
        ("ChatCompletionRequest", saying(role="assistant", refusal="no"), saying(role="assistant", refusal="")),
        ("ChatCompletionRequest", saying(role="assistant", content="", tool_calls=[]), saying(role="assistant")),
        ("ChatCompletionRequest", saying(role="user", content="", audio=None),
         saying(role="user", content="", audio={})),
        ("CompletionRequest", {"model": "m", "prompt": "", "suffix": ""}, {"model": "m", "prompt": "", "suffix": "x"}),
        ("CompletionRequest", {"model": "m", "prompt": [1]}, {"model": "m", "prompt": ["a"] * 2049}),
        ("CompletionRequest", {"model": "m", "prompt": "", "structured_outputs": {"json": "{}", "regex": None}},
         {"model": "m", "prompt": "", "structured_outputs": {"json": {}, "regex": "a"}}),
        ("TokenizeRequest", {"model": "m", "prompt": ""}, {"model": "m"}),
        ("TokenizeRequest", CHAT, CHAT | {"prompt": ""}),
        ("TokenizeRequest", CHAT | {"add_generation_prompt": False},
         {"model": "m", "prompt": "", "add_generation_prompt": False}),
        ("MessagesRequest", CHAT | {"max_tokens": 1, "container": None}, CHAT | {"max_tokens": 1, "container": "x"}),
        ("MessagesRequest", CHAT | {"max_tokens": 1, "tool_choice": {"type": "auto"}},
         CHAT | {"max_tokens": 1, "tool_choice": {"type": "any"}}),
        ("CountTokensRequest", CHAT, CHAT | {"max_tokens": 1}),
        ("ResponsesRequest", ASKED | {"conversation": None}, ASKED | {"conversation": "x"}),
        ("ResponsesRequest", ASKED | {"background": True, "store": None}, ASKED | {"background": True, "store": False}),
        ("ResponsesRequest", ASKED | {"structured_outputs": {"regex": "a"}, "text": {"verbosity": "low"}},
         ASKED | {"structured_outputs": {"regex": "a"}, "text": {"format": {"type": "text"}}}),
        ("ResponsesRequest", ASKED | {"stream": True, "stream_options": {}}, ASKED | {"stream_options": {}}),
        ("ResponsesRequest", {"model": "m", "input": [], "previous_response_id": "x"}, {"model": "m", "input": []}),
        ("ResponsesRequest", ASKED | {"input": [{"role": "user", "content": "a"}]},
         ASKED | {"input": [{"type": "file_search_call"}]}),
        ("InputTokensRequest", {"model": "m", "previous_response_id": "x"}, {"model": "m"}),
        ("InputTokensRequest", ASKED, ASKED | {"stream": True}),
    ],
)  # fmt: skip
async def test_what_a_schema_says_of_several_fields_is_what_is_asked(name: str, right: Any, wrong: Any) -> None:
    model, schema = (await models())[name], {"$ref": f"#/components/schemas/{name}"}
    validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    assert (accepts(model, right), validator.is_valid(right)) == (True, True)
    assert (accepts(model, wrong), validator.is_valid(wrong)) == (False, False)
