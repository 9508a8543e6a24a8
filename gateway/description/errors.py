"""Refusals, as the tree of errors has them."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

from gateway.anthropic.errors import error_type
from shared.errors import ModelLoading, TokenbusError
from shared.messages import LOAD_STATES

Schema = dict[str, Any]

HEADERS = {401: ("www-authenticate",), 429: ("retry-after", "retry-after-ms"), 503: ("retry-after", "retry-after-ms")}


LOADING: Schema = {
    "type": "object",
    "description": "with model_loading: how far it is, and a guess how long it takes",
    "properties": {
        "state": {"enum": list(LOAD_STATES)},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "eta_seconds": {"type": "number", "minimum": 0},
    },
    "required": ["state", "progress", "eta_seconds"],
    "additionalProperties": False,
}


def name_of(status: int, *, anthropic: bool) -> str:
    """Of a status' answer, and its schema, among the components."""
    phrase = "".join(word.capitalize() for word in HTTPStatus(status).phrase.split())
    return f"Anthropic{phrase}" if anthropic else phrase


def description_of(status: int) -> str:
    return f"{HTTPStatus(status).phrase}: {', '.join(error.code for error in _errors_of(status))}"


def schema_of(status: int, *, anthropic: bool) -> Schema:
    if not anthropic:
        return _openai(_errors_of(status))
    error = _object(type={"const": error_type(status)}, message={"type": "string"})
    return _object(type={"const": "error"}, error=error, request_id={"type": "string"})


def event_schema(*, anthropic: bool) -> Schema:
    """Of what ends a stream that had begun: any of them."""
    errors = sorted(_tree(TokenbusError), key=lambda error: error.code)
    if not anthropic:
        return _openai(errors)
    types = sorted({error_type(error.status) for error in errors})
    return _object(type={"const": "error"}, error=_object(type={"enum": types}, message={"type": "string"}))


def _errors_of(status: int) -> list[type[TokenbusError]]:
    return sorted((error for error in _tree(TokenbusError) if error.status == status), key=lambda error: error.code)


def _tree(error: type[TokenbusError]) -> Iterator[type[TokenbusError]]:
    yield error
    for kind in error.__subclasses__():
        yield from _tree(kind)


def _openai(errors: Sequence[type[TokenbusError]]) -> Schema:
    error = _object(
        message={"type": "string"},
        type={"enum": sorted({error.type for error in errors})},
        param={"type": ["string", "null"], "description": "what is wrong, where that can be said"},
        code={"enum": [error.code for error in errors]},
    )
    if ModelLoading in errors:
        error["properties"]["loading"] = LOADING
    return _object(error=error)


def _object(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
