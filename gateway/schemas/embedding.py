"""POST /v1/embeddings."""

from typing import Literal

from pydantic import Field

from gateway.schemas.base import MAX_INTEGER, Inputs, Request, as_list


class EmbeddingRequest(Request):
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=MAX_INTEGER)

    @property
    def inputs(self) -> list[str | list[int]]:
        return as_list(self.input)
