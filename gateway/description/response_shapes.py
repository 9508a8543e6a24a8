"""Answers in the shapes of OpenAI's Responses API."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from gateway.description.shapes import Count, TokenLogprob, shape
from gateway.responses.schemas import AllowedFunctions, FunctionTool, NamedFunction, PlainFormat, SchemaFormat
from gateway.schemas.chat import ReasoningEffort

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Number = Annotated[int, Field(ge=0, description="from 0 on, without a gap; ask for those after it")]


@shape
class InputText(TypedDict):
    type: Literal["input_text"]
    text: str


@shape
class GivenText(TypedDict):
    """As it was sent."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str


@shape
class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[str], Field(max_length=0)]
    logprobs: list[TokenLogprob]


@shape
class Refusal(TypedDict):
    type: Literal["refusal"]
    refusal: str


@shape
class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


@shape
class OutputMessage(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: Annotated[list[OutputText], Field(max_length=1)]


@shape
class MadeFunctionCall(TypedDict):
    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: Annotated[str, Field(description="JSON, unless the reply was cut off in it")]
    status: ItemStatus


@shape
class MadeReasoning(TypedDict):
    id: str
    type: Literal["reasoning"]
    summary: Annotated[list[str], Field(max_length=0)]
    content: Annotated[list[ReasoningText], Field(max_length=1)]
    status: ItemStatus


OutputItem = Annotated[OutputMessage | MadeFunctionCall | MadeReasoning, Field(discriminator="type")]


@shape
class InputTokensDetails(TypedDict):
    cached_tokens: Count
    cache_write_tokens: Count


@shape
class OutputTokensDetails(TypedDict):
    reasoning_tokens: Count


@shape
class ResponseUsage(TypedDict):
    """In tokens."""

    input_tokens: Count
    input_tokens_details: InputTokensDetails
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


@shape
class ResponseError(TypedDict):
    code: Literal["server_error", "invalid_prompt"]
    message: str
    param: str | None


@shape
class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


@shape
class EffectiveReasoning(TypedDict):
    effort: ReasoningEffort | None
    summary: Literal["auto", "concise", "detailed"] | None


@shape
class EffectiveText(TypedDict):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")]
    verbosity: Literal["low", "medium", "high"]


@shape
class Response(TypedDict):
    """With what was asked for, or its default."""

    id: str
    object: Literal["response"]
    created_at: Annotated[int, Field(description="in s since the epoch")]
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: EffectiveReasoning
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: EffectiveText
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions
    tools: list[FunctionTool]
    top_logprobs: Count
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


@shape
class ResponseEvent(TypedDict):
    type: Literal[
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response
    sequence_number: Number


@shape
class OutputItemEvent(TypedDict):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: Count
    item: OutputItem
    sequence_number: Number


@shape
class _OfItem(TypedDict):
    output_index: Count
    item_id: str
    sequence_number: Number


@shape
class _OfPart(_OfItem):
    content_index: Count


@shape
class ContentPartEvent(_OfPart):
    type: Literal["response.content_part.added", "response.content_part.done"]
    part: Annotated[OutputText | ReasoningText, Field(discriminator="type")]


@shape
class OutputTextDelta(_OfPart):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[TokenLogprob]


@shape
class OutputTextDone(_OfPart):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TokenLogprob]


@shape
class ReasoningTextDelta(_OfPart):
    type: Literal["response.reasoning_text.delta"]
    delta: str


@shape
class ReasoningTextDone(_OfPart):
    type: Literal["response.reasoning_text.done"]
    text: str


@shape
class ArgumentsDelta(_OfItem):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


@shape
class ArgumentsDone(_OfItem):
    type: Literal["response.function_call_arguments.done"]
    arguments: str
    name: str


@shape
class BrokenOffEvent(TypedDict):
    """Of the stream, not of the response: the server shuts down, or has lost the rest. Its number is that of the event
    before."""

    type: Literal["error"]
    code: Literal["shutting_down", "stream_lost"]
    message: str
    param: None
    sequence_number: Annotated[int, Field(ge=-1)]


ResponseStreamEvent = Annotated[
    ResponseEvent
    | OutputItemEvent
    | ContentPartEvent
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | ArgumentsDelta
    | ArgumentsDone
    | BrokenOffEvent,
    Field(discriminator="type"),
]


@shape
class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


@shape
class InputTokens(TypedDict):
    object: Literal["response.input_tokens"]
    input_tokens: Count


@shape
class StoredMessage(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    status: ItemStatus
    content: list[Annotated[InputText | OutputText | Refusal, Field(discriminator="type")]]


@shape
class StoredFunctionOutput(TypedDict):
    id: str
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[GivenText | Refusal]
    status: Literal["completed"]


@shape
class StoredReasoning(TypedDict):
    id: str
    type: Literal["reasoning"]
    summary: list[GivenText | Refusal]
    content: NotRequired[list[GivenText | Refusal]]
    status: NotRequired[ItemStatus]


@shape
class InputItems(TypedDict):
    object: Literal["list"]
    data: list[
        Annotated[
            StoredMessage | MadeFunctionCall | StoredFunctionOutput | StoredReasoning, Field(discriminator="type")
        ]
    ]
    first_id: str | None
    last_id: str | None
    has_more: bool
