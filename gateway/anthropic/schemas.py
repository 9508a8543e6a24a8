"""POST /v1/messages and /v1/messages/count_tokens, and the chat request that says the same.

A budget for thinking becomes an effort, since no chat template takes a number of tokens.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from gateway.anthropic.turns import Texts, Turn, check_blocks, conversation
from gateway.schemas.base import MAX_INTEGER, CacheHint, FreeForm, Off, Refused, Request, Stops, Strict, kind_of
from gateway.schemas.chat import MAX_MESSAGES, MAX_TOOLS, ChatCompletionRequest, FunctionName
from gateway.schemas.converted import chat_request
from gateway.schemas.rules import FILLED, Rule, given, needs

Effort = Literal["low", "medium", "high", "xhigh", "max"]
MODES = {"auto": "auto", "any": "required", "none": "none"}


class ToolDefinition(Strict):
    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: FreeForm
    strict: bool | None = None
    # Hints: arguments are always streamed as they are made, and only the model itself calls.
    cache_control: CacheHint = None
    eager_input_streaming: bool | None = None
    allowed_callers: Annotated[list[Literal["direct"]], Field(fail_fast=True)] | None = None
    defer_loading: Off | None = None
    input_examples: Annotated[list[Any], Field(max_length=0)] | None = None

    def for_chat(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": function | {"strict": self.strict}}


class AnyChoice(Strict):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoice(Strict):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Strict):
    type: Literal["none"]


Choice = Annotated[AnyChoice | ToolChoice | NoChoice, Field(discriminator="type")]
Display = Literal["summarized", "omitted"]


class ThinkingEnabled(Strict):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1024, le=MAX_INTEGER)
    display: Display | None = None


class ThinkingAdaptive(Strict):
    type: Literal["adaptive"]
    display: Display | None = None


class ThinkingDisabled(Strict):
    type: Literal["disabled"]


Thinking = Annotated[ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled, Field(discriminator="type")]


class JsonFormat(Strict):
    type: Literal["json_schema"]
    # "schema" would hide a method of BaseModel
    json_schema: FreeForm = Field(alias="schema")


class OutputConfig(Strict):
    effort: Effort | None = None
    format: JsonFormat | None = None


def effort_of(budget_tokens: int) -> Effort:
    if budget_tokens < 4096:
        return "low"
    return "medium" if budget_tokens < 16384 else "high"


class CountTokensRequest(Request):
    """What a prompt is made of."""

    refused: ClassVar[Refused] = {
        "container": (),
        "context_management": (),
        "diagnostics": (),
        "inference_geo": (),
        "mcp_servers": ([],),
        "user": (),
        "user_profile_id": (),
    }

    rules: ClassVar[tuple[Rule, ...]] = (
        needs(
            "tool_choice", given("tools", FILLED), {"properties": {"type": {"enum": ["any", "tool"]}}, "type": "object"}
        ),
    )

    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: str | Texts | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    # Hints that change no answer.
    cache_control: CacheHint = None
    speed: Literal["standard", "fast"] | None = None

    _chat: ChatCompletionRequest = PrivateAttr()

    @field_validator("system", mode="before")
    @classmethod
    def _only_text(cls, system: Any) -> Any:
        check_blocks(system, "text")
        return system

    @field_validator("tools", mode="before")
    @classmethod
    def _run_by_the_client(cls, tools: Any) -> Any:
        for tool in tools if isinstance(tools, list) else ():
            kind = tool.get("type") if isinstance(tool, dict) else None
            if kind not in (None, "custom"):
                raise ValueError(
                    f"tools of type {kind_of(tool)} are not supported; this server takes tools of your own"
                )
        return tools

    @model_validator(mode="after")
    def _convert(self) -> Self:
        self._chat = chat_request(**self._fields())
        return self

    def chat(self) -> ChatCompletionRequest:
        return self._chat

    @property
    def shows_thinking(self) -> bool:
        return getattr(self.thinking, "display", None) != "omitted"

    def _fields(self) -> dict[str, Any]:
        """Of the chat request."""
        messages = conversation(self.system, self.messages)
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant" and "tool_calls" in last:
            raise ValueError("the last 'tool_use' needs a 'tool_result' after it")
        form = self.output_config and self.output_config.format
        schema = form and {"type": "json_schema", "json_schema": {"name": "output", "schema": form.json_schema}}
        return {
            "model": self.model,
            "messages": messages,
            "continue_final_message": last.get("role") == "assistant" or None,
            "tools": [tool.for_chat() for tool in self.tools] if self.tools else None,
            "tool_choice": self._tool_choice(),
            "parallel_tool_calls": False if getattr(self.tool_choice, "disable_parallel_tool_use", None) else None,
            "reasoning_effort": self._effort(),
            "response_format": schema,
        }

    def _tool_choice(self) -> Any:
        if self.tool_choice is None:
            return None
        if isinstance(self.tool_choice, ToolChoice):
            return {"type": "function", "function": {"name": self.tool_choice.name}}
        return MODES[self.tool_choice.type]

    def _effort(self) -> str | None:
        """None leaves it to the model's template."""
        asked = self.output_config.effort if self.output_config else None
        if isinstance(self.thinking, ThinkingDisabled):
            return "none"
        if isinstance(self.thinking, ThinkingEnabled):
            return asked or effort_of(self.thinking.budget_tokens)
        return asked


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=1, le=MAX_INTEGER)
    stop_sequences: Stops | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=MAX_INTEGER)
    top_p: float | None = Field(None, gt=0, le=1)
    # Hints that change no answer.
    metadata: FreeForm | None = None
    service_tier: str | None = None

    @property
    def end_user(self) -> str | None:
        user = (self.metadata or {}).get("user_id")
        return user if isinstance(user, str) else None

    @model_validator(mode="after")
    def _room_for_the_reply(self) -> Self:
        if isinstance(self.thinking, ThinkingEnabled) and self.thinking.budget_tokens >= self.max_tokens:
            raise ValueError("'max_tokens' must be more than 'thinking.budget_tokens'")
        return self

    def _fields(self) -> dict[str, Any]:
        return super()._fields() | {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
        }
