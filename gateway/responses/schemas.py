"""POST /v1/responses and /v1/responses/input_tokens, and the chat request that says the same."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from gateway.responses.items import Item, Items, MessageItem, check_kinds
from gateway.schemas.base import MAX_INTEGER, FreeForm, Off, Refused, Request, SampledRequest, Strict, kind_of
from gateway.schemas.chat import (
    FORCED_CALLS_NEED_TOOLS,
    MAX_TOOLS,
    ChatCompletionRequest,
    FunctionName,
    Named,
    ReasoningEffort,
)
from gateway.schemas.converted import chat_request
from gateway.schemas.rules import TRUE, Rule, given, needs

LOGPROBS = "message.output_text.logprobs"
Included = Literal[
    "message.output_text.logprobs",
    # Hints: of tools that are not run here, of images, and of thoughts that are not hidden.
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class FunctionTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: FreeForm | None = None
    strict: bool | None = None
    # Hints: only the model itself calls, and all tools are there from the beginning.
    allowed_callers: Annotated[list[Literal["direct"]], Field(fail_fast=True)] | None = None
    defer_loading: Off | None = None

    def for_chat(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function | {"strict": self.strict}}


class NamedFunction(Named):
    type: Literal["function"]

    def told(self) -> dict[str, Any]:
        return {"type": self.type, "name": self.name}

    def for_chat(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.name}}


class AllowedFunctions(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1, fail_fast=True)]

    def told(self) -> dict[str, Any]:
        return {"type": self.type, "mode": self.mode, "tools": [tool.told() for tool in self.tools]}

    def for_chat(self) -> dict[str, Any]:
        allowed = {"mode": self.mode, "tools": [tool.for_chat() for tool in self.tools]}
        return {"type": "allowed_tools", "allowed_tools": allowed}


class PlainFormat(Strict):
    type: Literal["text", "json_object"]

    def for_chat(self) -> dict[str, Any]:
        return {"type": self.type}


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    # "schema" would hide a method of BaseModel
    json_schema: FreeForm = Field(alias="schema")
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        schema = {"name": self.name, "schema": self.json_schema}
        return {"type": "json_schema", "json_schema": schema}


class TextConfig(Strict):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None  # a hint


class Reasoning(Strict):
    effort: ReasoningEffort | None = None
    # Hints: thoughts are given whole, and templates decide which of them they show again.
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class PromptOfResponse(Request):
    """What the prompt is made of."""

    refused: ClassVar[Refused] = {
        "access_programs": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "prompt": (),
    }
    rules: ClassVar[tuple[Rule, ...]] = (
        {"if": {"properties": {"input": {"enum": [None, "", []]}}}, "then": given("previous_response_id")},
        FORCED_CALLS_NEED_TOOLS,
    )

    input: str | Items | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    chat_template_kwargs: FreeForm | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _of_known_kinds(cls, input: Any) -> Any:
        if isinstance(input, list):
            check_kinds(input)
        return input

    @field_validator("tools", mode="before")
    @classmethod
    def _run_by_the_client(cls, tools: Any) -> Any:
        for tool in tools if isinstance(tools, list) else ():
            if not isinstance(tool, dict) or tool.get("type") != "function":
                raise ValueError(f"tools of type {kind_of(tool)} are not supported; this server takes functions")
        return tools

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.input and self.previous_response_id is None:
            raise ValueError("'input' must not be empty")
        return self

    @property
    def items(self) -> list[Item]:
        return [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input or []

    def chat(self, messages: list[dict[str, Any]]) -> ChatCompletionRequest:
        """`messages`: of the conversation before, and its own. Raises ValueError."""
        return chat_request(messages=messages, **self._fields())

    def _fields(self) -> dict[str, Any]:
        """Of the chat request, besides its messages."""
        choice, form = self.tool_choice, self.text.format if self.text else None
        return {
            "model": self.model,
            "tools": [tool.for_chat() for tool in self.tools] if self.tools else None,
            "tool_choice": choice if choice is None or isinstance(choice, str) else choice.for_chat(),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": form.for_chat() if form else None,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "chat_template_kwargs": self.chat_template_kwargs,
        }


class ResponsesRequest(PromptOfResponse, SampledRequest):
    refused: ClassVar[Refused] = PromptOfResponse.refused | {"background_options": ()}
    rules: ClassVar[tuple[Rule, ...]] = (
        needs("background", {"properties": {"store": {"enum": [None, True]}}}, TRUE),
        needs("structured_outputs", {"properties": {"text": {"properties": {"format": {"type": "null"}}}}}),
    )

    max_output_tokens: int | None = Field(None, ge=1, le=MAX_INTEGER)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Annotated[list[Included], Field(max_length=64, fail_fast=True)] | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    # Hints that change no answer.
    max_tool_calls: int | None = Field(None, ge=1, le=MAX_INTEGER)  # of tools that are not run here
    prompt_cache_key: str | None = None
    prompt_cache_options: FreeForm | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None

    @property
    def end_user(self) -> str | None:
        return self.user or self.safety_identifier

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.background and self.store is False:
            raise ValueError("'background' needs 'store': it is how the response is found again")
        if self.structured_outputs is not None and self.text is not None and self.text.format is not None:
            raise ValueError("'text.format' and 'structured_outputs' cannot both be given")
        return self

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def _fields(self) -> dict[str, Any]:
        drawn = {name: getattr(self, name) for name in SampledRequest.model_fields.keys() - {"stream_options"}}
        return (
            drawn
            | super()._fields()
            | {
                "max_completion_tokens": self.max_output_tokens,
                "logprobs": True if self.wants_logprobs else None,
                "top_logprobs": self.top_logprobs or None,
            }
        )


class InputTokensRequest(PromptOfResponse):
    """Of what a response would be made from."""
