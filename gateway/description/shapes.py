"""Answers in the shapes of OpenAI's API, and of its peers that serve one model to many (vLLM, Jina)."""

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from shared.messages import LoadState

Count = Annotated[int, Field(ge=0)]
shape = with_config(ConfigDict(extra="forbid", strict=True))


@shape
class PromptTokensDetails(TypedDict):
    cached_tokens: Count


@shape
class CompletionTokensDetails(TypedDict):
    reasoning_tokens: Count


@shape
class Usage(TypedDict):
    """In tokens; what choices of one prompt share counts once."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


@shape
class PromptUsage(TypedDict):
    """In tokens."""

    prompt_tokens: Count
    total_tokens: Count


@shape
class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


@shape
class TokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


@shape
class ChatLogprobs(TypedDict):
    """One for each token that `usage` counts."""

    content: list[TokenLogprob]
    refusal: None


@shape
class FunctionCall(TypedDict):
    name: str
    arguments: Annotated[str, Field(description="JSON, unless the reply was cut off in it")]


@shape
class MadeCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


@shape
class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[Annotated[str, Field(description="where the model thinks aloud")]]
    tool_calls: NotRequired[list[MadeCall]]


@shape
class ChatChoice(TypedDict):
    index: Count
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


@shape
class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: Annotated[int, Field(description="in s since the epoch")]
    model: str
    choices: list[ChatChoice]
    usage: Usage


@shape
class FunctionPiece(TypedDict):
    name: NotRequired[Annotated[str, Field(description="in the call's first piece only")]]
    arguments: str


@shape
class CallPiece(TypedDict):
    """Id, type and name come with a call's first piece."""

    index: Count
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionPiece


@shape
class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallPiece]]


@shape
class ChunkChoice(TypedDict):
    index: Count
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


@shape
class ChatCompletionChunk(TypedDict):
    """`usage` is there if it was asked for: null, but in the last chunk, which has no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


@shape
class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


@shape
class CompletionChoice(TypedDict):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


@shape
class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


@shape
class CompletionChunkChoice(TypedDict):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


@shape
class CompletionChunk(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage | None]


@shape
class Embedding(TypedDict):
    object: Literal["embedding"]
    index: Count
    embedding: list[float] | Annotated[str, Field(description="little-endian float32 in base64")]


@shape
class Embeddings(TypedDict):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: PromptUsage


@shape
class LoadStatus(TypedDict):
    value: LoadState


@shape
class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: Annotated[int, Field(description="when its oldest living worker started; 0 if there is none")]
    owned_by: Literal["tokenbus"]
    status: LoadStatus
    max_model_len: NotRequired[Annotated[int, Field(ge=1, description="tokens of prompt and reply together")]]
    shares: NotRequired[Annotated[dict[str, float], Field(description="of an alias: of each of its models")]]


@shape
class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]


@shape
class RankedDocument(TypedDict):
    text: str


@shape
class Ranked(TypedDict):
    index: Annotated[int, Field(ge=0, description="in the request")]
    document: NotRequired[RankedDocument]
    relevance_score: float


@shape
class Ranking(TypedDict):
    """Best first."""

    id: str
    model: str
    usage: PromptUsage
    results: list[Ranked]


@shape
class Tokens(TypedDict):
    count: Count
    max_model_len: Annotated[int, Field(ge=1)]
    tokens: list[Count]
    token_strs: list[str] | None


@shape
class Text(TypedDict):
    prompt: str


@shape
class Health(TypedDict):
    status: Literal["ok"]


@shape
class Version(TypedDict):
    version: str
