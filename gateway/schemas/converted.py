"""Other requests that are made into chat requests."""

from typing import Any

from pydantic import ValidationError

from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.wrong import wrong


def chat_request(**fields: Any) -> ChatCompletionRequest:
    """Raises ValueError with what is wrong, as validators do: it becomes that of the whole request."""
    said = {name: value for name, value in fields.items() if value is not None}
    try:
        return ChatCompletionRequest.model_validate(said)
    except ValidationError as error:
        raise ValueError(wrong(error, said).message) from None
