"""What a request may say. What is not honoured yet is refused by name, never ignored; harmless hints are accepted."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_CHOICES = 128
MAX_INPUTS = 2048
MAX_MESSAGES = 10_000
MAX_PARTS = 1_000  # of one message
MAX_STOP_CHARS = 256

# fail_fast, or a long list of wrong things makes an error of each, and holds the event loop until the lease is lost.
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[Stop], Field(max_length=32, fail_fast=True)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
TokenIdLists = Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    # name -> values (besides null) that change nothing; any other is refused
    not_yet: ClassVar[dict[str, tuple[Any, ...]]] = {}

    model: str = Field(min_length=1)
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_honoured(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            raise ValueError("the body must be a JSON object")
        given = [name for name in cls.not_yet if name in body]
        for name in given:
            value = body[name]
            if value is not None and not any(type(value) is type(ok) and value == ok for ok in cls.not_yet[name]):
                raise Unsupported(name)
        return {name: value for name, value in body.items() if name not in given} if given else body


class Unsupported(Exception):
    """A parameter that this server does not honour yet."""

    def __init__(self, param: str) -> None:
        super().__init__(f"'{param}' is not supported by this server.")
        self.param = param


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # harmless: none is added


class GenerationRequest(_Request):
    """The sampling side that chat and completions share. Ranges are OpenAI's."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)  # 0 and -1: off
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    stop: Stop | Stops | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)  # smaller ones make logits infinite
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed with 'stream': true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["refusal"]
    refusal: str


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart | RefusalPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal"):
                raise ValueError(f"content parts of type {kind!r} are not supported; this server takes text")
        return content

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        said_otherwise = self.role == "assistant" and (self.tool_calls or self.refusal)
        if self.content is None and not said_otherwise:
            raise ValueError(f"a message of role '{self.role}' needs 'content'")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: content is one string."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
        message: dict[str, Any] = {"role": self.role, "content": content or self.refusal or ""}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class ChatCompletionRequest(GenerationRequest):
    not_yet: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    # Hints that change no answer.
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    verbosity: str | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(GenerationRequest):
    not_yet: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "echo": (False,),
        "logit_bias": ({},),
        "logprobs": (),
        "suffix": ("",),
    }
    DEFAULT_MAX_TOKENS: ClassVar[int] = 16  # OpenAI's

    prompt: str | TokenIds | Texts | TokenIdLists

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.prompts) * (self.n or 1) > MAX_INPUTS:
            raise ValueError(f"'prompt': at most {MAX_INPUTS} replies are allowed in one request")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        return _as_list(self.prompt)

    @property
    def limit(self) -> int:
        return self.max_tokens or self.DEFAULT_MAX_TOKENS


class EmbeddingRequest(_Request):
    not_yet: ClassVar[dict[str, tuple[Any, ...]]] = {"dimensions": ()}

    input: str | TokenIds | Texts | TokenIdLists
    encoding_format: Literal["float", "base64"] | None = None

    @field_validator("input")
    @classmethod
    def _not_too_many(cls, value: Any) -> Any:
        if isinstance(value, list) and value and not isinstance(value[0], int) and len(value) > MAX_INPUTS:
            raise ValueError(f"at most {MAX_INPUTS} inputs are allowed")
        return value

    @property
    def inputs(self) -> list[str | list[int]]:
        return _as_list(self.input)


def _as_list(value: Any) -> list[str | list[int]]:
    """A string or one list of token ids is one input; a list of either is many."""
    if isinstance(value, str) or isinstance(value[0], int):
        return [value]
    return list(value)
