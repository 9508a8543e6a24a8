"""POST /v1/embeddings."""

from typing import Any, Literal

from pydantic import Field, field_validator

from gateway.schemas.base import MAX_INPUTS, Request, Texts, TokenIdLists, TokenIds, as_list


class EmbeddingRequest(Request):
    input: str | TokenIds | Texts | TokenIdLists
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)

    @field_validator("input")
    @classmethod
    def _not_too_many(cls, value: Any) -> Any:
        if isinstance(value, list) and value and not isinstance(value[0], int) and len(value) > MAX_INPUTS:
            raise ValueError(f"at most {MAX_INPUTS} inputs are allowed")
        return value

    @property
    def inputs(self) -> list[str | list[int]]:
        return as_list(self.input)
