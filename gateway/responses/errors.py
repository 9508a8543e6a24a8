"""Errors name the fields of this API: what is checked and run is a chat request."""

from typing import Any

from shared.errors import TokenbusError

PATH = "/v1/responses"
NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning",
    "response_format": "text",
}


def is_responses(path: str) -> bool:
    return path == PATH or path.startswith(PATH + "/")


def param_of(param: str | None) -> str | None:
    return NAMES.get(param or "", param)


def error_body(error: TokenbusError) -> dict[str, Any]:
    body = error.body()
    body["error"]["param"] = param_of(error.param)
    return body
