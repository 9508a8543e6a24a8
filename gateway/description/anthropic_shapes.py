"""Answers in the shapes of Anthropic's Messages API."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from gateway.description.shapes import Count, shape

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


@shape
class SaidText(TypedDict):
    type: Literal["text"]
    text: str


@shape
class Thought(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: Annotated[Literal[""], Field(description="not checked when it comes back")]


@shape
class ToolUse(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = Annotated[SaidText | Thought | ToolUse, Field(discriminator="type")]


@shape
class ThinkingTokens(TypedDict):
    thinking_tokens: Count


@shape
class MessageUsage(TypedDict):
    """In tokens. In a stream, what is known of them when it begins: nothing."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count
    output_tokens_details: NotRequired[ThinkingTokens]


@shape
class MadeMessage(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


@shape
class TokenCount(TypedDict):
    input_tokens: Count


@shape
class MessageStart(TypedDict):
    type: Literal["message_start"]
    message: MadeMessage


@shape
class ContentBlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: Count
    content_block: ContentBlock


@shape
class TextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


@shape
class ThinkingDelta(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


@shape
class InputJsonDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


@shape
class ContentBlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: Count
    delta: Annotated[TextDelta | ThinkingDelta | InputJsonDelta, Field(discriminator="type")]


@shape
class ContentBlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: Count


@shape
class EndOfMessage(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None


@shape
class MessageDelta(TypedDict):
    type: Literal["message_delta"]
    delta: EndOfMessage
    usage: MessageUsage


@shape
class MessageStop(TypedDict):
    type: Literal["message_stop"]


@shape
class Ping(TypedDict):
    type: Literal["ping"]


MessageEvent = Annotated[
    MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop | Ping,
    Field(discriminator="type"),
]
