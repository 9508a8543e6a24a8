"""POST /v1/chat/completions."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from gateway.schemas.base import (
    MAX_FREE_BYTES,
    MAX_INTEGER,
    CacheHint,
    FreeForm,
    GenerationRequest,
    NotHonoured,
    Refused,
    Strict,
    small,
)
from gateway.schemas.parts import PARTS, RefusalPart, TextPart, check_parts
from gateway.schemas.rules import FILLED, TRUE, Rule, both, given, needs, unsaid
from shared.messages import Structured

MAX_MESSAGES = 10_000
MAX_PARTS = 1_000  # of one message
MAX_TOOLS = 1_000

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]


class CalledFunction(Strict):
    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[str, Field(max_length=MAX_FREE_BYTES)]  # JSON, and read as such
    # Hints: the same again, from OpenAI's libraries, and what LiteLLM has besides.
    parsed_arguments: Any = None
    provider_specific_fields: FreeForm | None = None


class ToolCall(Strict):
    id: str
    type: Literal["function"] | None = None
    function: CalledFunction
    # Of a stream that a client has put together, and from LiteLLM: hints.
    index: int | None = None
    provider_specific_fields: FreeForm | None = None

    def for_template(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}


FORCED_CALLS_NEED_TOOLS = needs("tool_choice", given("tools", FILLED), {"not": {"enum": [None, "none", "auto"]}})
BY_ASSISTANT = given("role", {"const": "assistant"})
SAYS = [given("content"), both(BY_ASSISTANT, given("tool_calls", FILLED)), both(BY_ASSISTANT, given("refusal", FILLED))]
WHOLE: Rule = {
    "anyOf": SAYS,
    "allOf": [
        needs("role", given("tool_call_id"), {"const": "tool"}),
        needs("tool_calls", BY_ASSISTANT, FILLED),
    ],
}


class Message(Strict):
    model_config = ConfigDict(json_schema_extra=WHOLE)

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart | RefusalPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, as vLLM calls it
    # Hints: what a reply had besides, and what OpenAI's libraries and LiteLLM made of it.
    annotations: Annotated[list[Any], Field(max_length=MAX_PARTS)] | None = None
    parsed: Any = None
    provider_specific_fields: FreeForm | None = None
    # Of OpenAI's first API, and of its voices: left out in silence, they would be missing in the prompt.
    function_call: NotHonoured = None
    audio: NotHonoured = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, content: Any) -> Any:
        check_parts(content, PARTS)
        return content

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        said_otherwise = self.role == "assistant" and (self.tool_calls or self.refusal)
        if self.content is None and not said_otherwise:
            raise ValueError(f"a message of role '{self.role}' needs 'content'")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role 'tool' needs 'tool_call_id'")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role '{self.role}' cannot have 'tool_calls'")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: content is one string."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
        message: dict[str, Any] = {"role": self.role, "content": "\n".join(filter(None, (content, self.refusal)))}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        thoughts = self.reasoning if self.reasoning_content is None else self.reasoning_content
        told = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": thoughts}
        message.update((name, value) for name, value in told.items() if value is not None)
        return message


class Function(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function
    cache_control: CacheHint = None


class Named(Strict):
    """A function of the tools; what is said of it besides is said there."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Strict):
    type: Literal["function"]
    function: Named


class Allowed(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedTools(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


class JsonSchema(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    # "schema" would hide a method of BaseModel
    json_schema: FreeForm = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatCompletionRequest(GenerationRequest):
    refused: ClassVar[Refused] = {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "store": (False,),
        "web_search_options": (),
    }

    rules: ClassVar[tuple[Rule, ...]] = (
        needs("top_logprobs", given("logprobs", TRUE), {"type": "integer", "minimum": 1}),
        needs("response_format", unsaid("structured_outputs")),
        FORCED_CALLS_NEED_TOOLS,
    )

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INTEGER)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: FreeForm | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # Hints that change no answer.
    metadata: FreeForm | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: FreeForm | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    verbosity: str | None = None

    @property
    def end_user(self) -> str | None:
        return self.user or self.safety_identifier

    @field_validator("tools")
    @classmethod
    def _small_together(cls, tools: list[Tool] | None) -> list[Tool] | None:
        small([tool.function.parameters for tool in tools or ()])
        return tools

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' is only allowed with 'logprobs': true")
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("'response_format' and 'structured_outputs' cannot both be given")
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise ValueError("'continue_final_message' and 'add_generation_prompt' cannot both be true")
            if self.messages[-1].role != "assistant":
                raise ValueError("'continue_final_message' needs a last message of role 'assistant'")
        return self

    @model_validator(mode="after")
    def _tools_are_there(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("'tools': two functions have the same name")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("'tool_choice' needs 'tools' to choose from")
        if unknown := set(self._chosen or ()) - set(names):
            raise ValueError(f"'tool_choice' names {min(unknown)!r}, which is not among the 'tools'")
        return self

    @property
    def _chosen(self) -> list[str] | None:
        """The functions that may be called; None: any."""
        if isinstance(self.tool_choice, NamedTool):
            return [self.tool_choice.function.name]
        if isinstance(self.tool_choice, AllowedTools):
            return [tool.function.name for tool in self.tool_choice.allowed_tools.tools]
        return None

    @property
    def _callable(self) -> list[Function]:
        if self.tool_choice == "none":
            return []
        functions = [tool.function for tool in self.tools or ()]
        return [one for one in functions if self._chosen is None or one.name in self._chosen]

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def structured(self) -> Structured | None:
        if isinstance(self.response_format, JsonSchemaFormat):
            return Structured("json", self.response_format.json_schema.json_schema, "response_format")
        if isinstance(self.response_format, JsonObjectFormat):
            return Structured("json", True, "response_format")
        return super().structured

    def constraints(self) -> Iterator[Structured]:
        yield from super().constraints()
        for function in self._callable:
            if function.parameters is not None and (self._mode == "required" or function.strict):
                yield Structured("json", function.parameters, "tools")

    def payload(self) -> dict[str, Any]:
        """The job's, see shared.messages.Job."""
        payload: dict[str, Any] = {"messages": [message.for_template() for message in self.messages]}
        if self.tools and self.tool_choice != "none":
            payload["tools"] = [tool.function.model_dump(exclude_none=True) for tool in self.tools]
            payload["tool_choice"] = {"mode": self._mode, "names": self._chosen}
            if self.parallel_tool_calls is False:
                payload["parallel_tool_calls"] = False
        if self.chat_template_kwargs:
            payload["template"] = self.chat_template_kwargs
        if self.reasoning_effort is not None:
            payload["reasoning_effort"] = self.reasoning_effort
        if self.continue_final_message:
            payload["continue_final_message"] = True
        if self.add_generation_prompt is False:
            payload["add_generation_prompt"] = False
        return payload

    @property
    def _mode(self) -> Literal["auto", "required"]:
        if isinstance(self.tool_choice, AllowedTools):
            return self.tool_choice.allowed_tools.mode
        return "required" if self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool) else "auto"
