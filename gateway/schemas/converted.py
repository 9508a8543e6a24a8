"""Other requests that are made into chat requests."""

from typing import Any

from pydantic import ValidationError

from gateway.schemas.chat import ChatCompletionRequest


def chat_request(**fields: Any) -> ChatCompletionRequest:
    """Raises ValueError with the first thing that is wrong, as validators do: it becomes that of the whole request."""
    try:
        return ChatCompletionRequest.model_validate(
            {name: value for name, value in fields.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"][:3])
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"Invalid value for '{path}': {reason}" if path else reason) from None
