"""POST /tokenize and /detokenize, vLLM's."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PrivateAttr, model_validator

from gateway.schemas.base import FreeForm, Refused, Request, TokenId
from gateway.schemas.chat import MAX_MESSAGES, MAX_TOOLS, Message, Tool
from gateway.schemas.converted import chat_request
from gateway.schemas.rules import Rule, given, just_one, needs

ONLY_WITH_MESSAGES = ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")


class TokenizeRequest(Request):
    """Of a text, or of a conversation."""

    refused: ClassVar[Refused] = {"chat_template": (), "mm_processor_kwargs": ({},)}

    rules: ClassVar[tuple[Rule, ...]] = (
        just_one("prompt", "messages"),
        *(needs(name, given("messages")) for name in ONLY_WITH_MESSAGES),
    )

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None  # a text: unless false; a conversation: its template writes them
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    chat_template_kwargs: FreeForm | None = None

    _chat: dict[str, Any] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either 'prompt' or 'messages' must be given")
        names = ("messages", *ONLY_WITH_MESSAGES)
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.prompt is None:
            self._chat = chat_request(model=self.model, **given).payload()
        elif given:
            raise ValueError(f"'{next(iter(given))}' is only allowed with 'messages'")
        return self

    def payload(self) -> dict[str, Any]:
        """The job's."""
        if self._chat is not None:
            return self._chat | {"add_special_tokens": bool(self.add_special_tokens)}
        return {"prompt": self.prompt, "add_special_tokens": self.add_special_tokens is not False}


class DetokenizeRequest(Request):
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
