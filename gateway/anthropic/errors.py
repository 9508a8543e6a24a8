"""Errors as Anthropic's clients read them."""

from typing import Any

from shared.errors import TokenbusError

PATH = "/v1/messages"
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}

NAMES = {"reasoning_effort": "thinking", "response_format": "output_config", "stop": "stop_sequences"}  # of parameters


def speaks_anthropic(path: str) -> bool:
    return path == PATH or path.startswith(PATH + "/")


def error_type(status: int) -> str:
    return TYPES.get(status, "api_error")


def error_body(error: TokenbusError, request_id: str | None = None) -> dict[str, Any]:
    body = {"type": "error", "error": {"type": error_type(error.status), "message": _message(error)}}
    return body if request_id is None else body | {"request_id": request_id}


def _message(error: TokenbusError) -> str:
    """With the parameter that is to blame: there is no other place for it."""
    param = NAMES.get(error.param or "", error.param)
    return error.message if param is None or f"'{param}" in error.message else f"{param}: {error.message}"
