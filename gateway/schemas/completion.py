"""POST /v1/completions."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from gateway.schemas.base import (
    MAX_CHOICES,
    MAX_INPUTS,
    MAX_INTEGER,
    GenerationRequest,
    Inputs,
    Refused,
    as_list,
)


class CompletionRequest(GenerationRequest):
    refused: ClassVar[Refused] = {"suffix": ("",)}
    DEFAULT_MAX_TOKENS: ClassVar[int] = 16  # OpenAI's

    prompt: Inputs
    max_tokens: int | None = Field(None, ge=0, le=MAX_INTEGER)
    logprobs: int | None = Field(None, ge=0, le=20)  # OpenAI takes 5, others 20
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.prompts) * self.candidates > MAX_INPUTS:
            raise ValueError(f"'prompt': at most {MAX_INPUTS} replies are allowed in one request")
        return self

    @model_validator(mode="after")
    def _best_of_more(self) -> Self:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("'best_of' must not be less than 'n'")
        if self.stream and self.candidates > (self.n or 1):
            raise ValueError("'best_of' cannot be streamed: which are the best is known at the end")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        return as_list(self.prompt)

    @property
    def candidates(self) -> int:
        """Replies that are made of each prompt; the best `n` of them are returned."""
        return self.best_of or self.n or 1

    @property
    def limit(self) -> int:
        return self.DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
