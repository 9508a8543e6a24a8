"""POST /rerank and /v1/rerank, in the shape of Jina and Cohere that vLLM serves too."""

from typing import Annotated, Any

from pydantic import Field

from gateway.schemas.base import MAX_INPUTS, MAX_INTEGER, Request, Strict
from shared.messages import EMBEDDING_INPUTS_PER_JOB

MAX_QUERY_CHARS = 2**17  # each job of a request has it


class Document(Strict):
    text: str


class RerankRequest(Request):
    query: str = Field(min_length=1, max_length=MAX_QUERY_CHARS)
    documents: Annotated[list[str | Document], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    top_n: int | None = Field(None, ge=0, le=MAX_INTEGER)  # 0: all
    return_documents: bool | None = None  # unless false

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]

    def payloads(self) -> list[dict[str, Any]]:
        """Of the jobs."""
        texts, most = self.texts, EMBEDDING_INPUTS_PER_JOB
        return [{"query": self.query, "documents": texts[i : i + most]} for i in range(0, len(texts), most)]
