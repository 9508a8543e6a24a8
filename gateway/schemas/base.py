"""What all requests share, and what those that generate do."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gateway.schemas.rules import TRUE, Rule, given, just_one, needs
from shared.grammar import LONGEST
from shared.messages import Structured

MAX_CHOICES = 128
MAX_INPUTS = 2048
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
MAX_NAME = 512  # characters of a model's
MAX_FREE_BYTES = 2**20  # of JSON that is passed on as it is: who makes objects of it holds everybody up
MAX_INTEGER = 2**64 - 1  # larger ones are no integers for the parser

# fail_fast, or a long list of wrong things makes an error of each, and holds the event loop until the lease is lost.
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[Stop], Field(max_length=32, fail_fast=True)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIdKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]  # "01" would be the same
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[
    dict[TokenIdKey, Bias],
    Field(max_length=MAX_BIASES, fail_fast=True, json_schema_extra={"additionalProperties": False}),
]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
JsonText = Annotated[
    str, Field(min_length=1, max_length=LONGEST, json_schema_extra={"contentMediaType": "application/json"})
]
GrammarText = Annotated[str, Field(min_length=1, max_length=LONGEST)]
TokenIdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]


def not_too_many(given: Any) -> Any:
    """Before anything is made of them."""
    if isinstance(given, list) and len(given) > MAX_INPUTS and not isinstance(given[0], int):
        raise ValueError(f"at most {MAX_INPUTS} inputs are allowed")
    return given


Inputs = Annotated[str | TokenIds | Texts | TokenIdLists, BeforeValidator(not_too_many)]


Refused = dict[str, tuple[Any, ...]]  # name -> values (besides null) that change nothing; any other is refused


T = TypeVar("T")


def small(value: T) -> T:
    """Raises ValueError."""
    try:
        size = len(orjson.dumps(value))
    except TypeError:  # deeper than 254: less than what is read
        raise ValueError("it is nested too deeply") from None
    if size > MAX_FREE_BYTES:
        raise ValueError(f"it is larger than {MAX_FREE_BYTES} bytes")
    return value


def kind_of(part: Any) -> str:
    """What it says that it is, for a message, which must not take seconds to be made."""
    kind = part.get("type") if isinstance(part, dict) else None
    return repr(kind) if kind is None or isinstance(kind, str) else type(kind).__name__


FreeForm = Annotated[dict[str, Any], AfterValidator(small)]
CacheHint = FreeForm | None  # no answer depends on what is kept of a prompt


def absent(value: Any) -> None:
    """Raises ValueError."""
    if value not in (None, ""):
        raise ValueError("it is not supported by this server")


NotHonoured = Annotated[None, BeforeValidator(absent)]


def off(value: bool) -> bool:
    """Raises ValueError."""
    if value:
        raise ValueError("Input should be False: it is not supported")
    return value


Off = Annotated[bool, AfterValidator(off), Field(json_schema_extra={"const": False})]  # Literal[False] takes 0 as well


class Strict(BaseModel):
    """What it does not know is refused, unless it is null: libraries write down all that their types have."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    known: ClassVar[frozenset[str]]  # names of fields, as they are sent

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls.known = frozenset(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_is_enough(cls, given: Any) -> Any:
        """A million of them are a million errors, and seconds in which the event loop stands still."""
        if not isinstance(given, dict) or cls.known.issuperset(given):
            return given
        unknown = next((name for name, value in given.items() if name not in cls.known and value is not None), None)
        return {name: given[name] for name in (*cls.known, unknown) if name in given}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        handler.resolve_ref_schema(schema)["additionalProperties"] = {"type": "null"}
        return schema


class DirectCaller(Strict):
    """The model itself, and no program of its."""

    type: Literal["direct"]


class Request(Strict):
    refused: ClassVar[Refused] = {}
    rules: ClassVar[tuple[Rule, ...]] = ()  # besides those of its bases

    model: str = Field(min_length=1, max_length=MAX_NAME)
    user: str | None = None

    @property
    def end_user(self) -> str | None:
        """Who asks, as the client tells it; the protocols call it by several names."""
        return self.user

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_honoured(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            raise ValueError("the body must be a JSON object")
        given = [name for name in cls.refused if name in body]
        for name in given:
            value = body[name]
            if value is not None and not any(type(value) is type(ok) and value == ok for ok in cls.refused[name]):
                raise Unsupported(name)
        return {name: value for name, value in body.items() if name not in given} if given else body

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core, handler)
        model = handler.resolve_ref_schema(schema)
        for name, harmless in cls.refused.items():
            model["properties"][name] = {"enum": [None, *harmless], "description": "not honoured"}
        if rules := [rule for base in cls.__mro__ for rule in vars(base).get("rules", ())]:
            model["allOf"] = rules
        return schema


class Unsupported(Exception):
    """A parameter that this server does not honour."""

    def __init__(self, param: str) -> None:
        super().__init__(f"'{param}' is not supported by this server.")
        self.param = param


class StructuredOutputs(Strict):
    """vLLM's field: exactly one of them."""

    model_config = ConfigDict(
        json_schema_extra=just_one(
            "json", "json_object", "regex", "choice", "grammar", value={"not": {"enum": [None, False]}}
        )
    )

    # "json" would hide a method of BaseModel
    json_schema: FreeForm | bool | JsonText | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: GrammarText | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1000, fail_fast=True)] | None = None
    grammar: GrammarText | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise ValueError("exactly one of 'json', 'json_object', 'regex', 'choice' and 'grammar' must be given")
        return self

    @field_validator("json_schema")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"it is a string, but not one that holds JSON: {error}") from None
            if not isinstance(value, dict) and value is not True:
                raise ValueError("it is a string, but not one that holds a schema that something fits")
        return value

    @property
    def structured(self) -> Structured:
        if self.regex is not None:
            return Structured("regex", self.regex)
        if self.choice is not None:
            return Structured("choice", self.choice)
        if self.grammar is not None:
            return Structured("grammar", self.grammar)
        return Structured("json", True if self.json_object else self.json_schema)


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # harmless: none is added


class SampledRequest(Request):
    """How a reply is drawn, and whether it is streamed. Ranges are OpenAI's."""

    rules: ClassVar[tuple[Rule, ...]] = (needs("stream_options", given("stream", TRUE)),)

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_INTEGER)  # 0 and -1: off
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=MAX_INTEGER)
    stop: Stop | Stops | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)  # smaller ones make logits infinite
    logit_bias: Biases | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_INTEGER)
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256, fail_fast=True)] | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed with 'stream': true")
        return self


class GenerationRequest(SampledRequest):
    """What chat and completions share."""

    max_tokens: int | None = Field(None, ge=1, le=MAX_INTEGER)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def structured(self) -> Structured | None:
        """What the reply must look like."""
        return None if self.structured_outputs is None else self.structured_outputs.structured

    def constraints(self) -> Iterator[Structured]:
        """All that the reply may have to obey."""
        if self.structured is not None:
            yield self.structured

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def as_list(value: Any) -> list[str | list[int]]:
    """A string or one list of token ids is one input; a list of either is many."""
    if isinstance(value, str) or isinstance(value[0], int):
        return [value]
    return list(value)
