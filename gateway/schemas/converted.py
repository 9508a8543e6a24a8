"""Other requests that are made into chat requests."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.schemas.chat import ChatCompletionRequest


def chat_request(**fields: Any) -> ChatCompletionRequest:
    """Raises ValueError with the first thing that is wrong, as validators do: it becomes that of the whole request."""
    try:
        return ChatCompletionRequest.model_validate(
            {name: value for name, value in fields.items() if value is not None}
        )
    except ValidationError as error:
        raise ValueError(first_of(error)) from None


MOST_ERRORS = 1000


def details(error: ValidationError) -> list[ErrorDetails]:
    """Raises ValueError where they are many: to tell a million takes seconds, in which the event loop stands still."""
    if error.error_count() > MOST_ERRORS:
        raise ValueError(f"more than {MOST_ERRORS} fields are unknown or wrong")
    return error.errors(include_url=False, include_input=False, include_context=False)


def first_of(error: ValidationError, prefix: str = "") -> str:
    """The first thing that is wrong. `prefix`: of the path to it."""
    first = details(error)[0]
    path = prefix + ".".join(str(part) for part in first["loc"][:3])
    reason = first["msg"].removeprefix("Value error, ")
    return f"Invalid value for '{path}': {reason}" if path else reason
