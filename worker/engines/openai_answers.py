"""What an upstream's answers say, in the OpenAI API's words. They are another program's: what is not of the type that
it should be, text that is no Unicode too, fails the request that it answers, and gets no further."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from shared.errors import EngineFailed, UpstreamFailed
from shared.messages import FinishReason, Logprob, TokenLogprob, ToolCallDelta, Usage
from worker.engines.base import EngineRequest, Output
from worker.engines.logprobs import LEAST

REASONS: dict[str, FinishReason] = {"length": "length"}  # all others are an end
BREAKS = frozenset({"abort", "error", "insufficient_system_resource"})  # of a reply that is not whole


class _Wire(msgspec.Struct):
    """What is not named is not read."""


class _Function(_Wire):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None  # the latter of some servers


class _Call(_Wire):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Part(_Wire):
    text: str | None = None


class _Message(_Wire):
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    tool_calls: list[_Call] | None = None


class _Top(_Wire):
    token: str
    logprob: float | None = None
    bytes: list[int] | None = None


class _Scored(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(_Wire):
    """Of a chat `content`, the others of a completion."""

    content: list[_Scored] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class _Choice(_Wire):
    index: int = 0
    delta: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: _Logprobs | None = None


class _Details(_Wire):
    cached_tokens: float | None = None
    reasoning_tokens: float | None = None


class _Usage(_Wire):
    """Counts, which some servers write as floats."""

    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    total_tokens: float | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Chunk(_Wire):
    error: Any = None
    usage: _Usage | None = None
    choices: list[_Choice] | None = None


class _Row(_Wire):
    index: int
    embedding: str | list[float]


class _Embedded(_Wire):
    data: list[_Row]
    usage: _Usage | None = None


class _Rank(_Wire):
    index: int
    relevance_score: float


class _Ranked(_Wire):
    results: list[_Rank]
    usage: _Usage | None = None


_chunk = msgspec.json.Decoder(_Chunk).decode


class Reply:
    """Reads the chunks of one."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._reason: str | None = None
        self._stop: str | None = None
        self._usage: _Usage | None = None
        self._pieces = 0
        self._call = -1  # the last of its tool calls
        self._call_id: str | None = None

    def take(self, data: bytes) -> Output | None:
        """Raises UpstreamFailed, EngineFailed."""
        try:
            chunk = _chunk(data)
        except msgspec.DecodeError as error:
            raise UpstreamFailed(f"The upstream's stream cannot be read: {error}") from error
        if chunk.error is not None:
            raise EngineFailed(f"The upstream failed: {_message_of(chunk.error)}")
        self._usage = chunk.usage or self._usage
        choice = next((one for one in chunk.choices or () if one.index == 0), None)
        if choice is None:
            return None
        self._reason = choice.finish_reason or self._reason
        if isinstance(choice.stop_reason, str):
            self._stop = choice.stop_reason
        output = Output(id=self._request.id)
        if self._request.kind == "chat":
            self._read(choice.delta or _Message(), output)
        else:
            output.text = choice.text or ""
        if choice.logprobs is not None:
            output.logprobs = [_scored(one) for one in choice.logprobs.content or ()] or _of_completion(choice.logprobs)
        if not output.is_something:
            return None
        self._pieces += 1
        return output

    def _read(self, message: _Message, output: Output) -> None:
        content = message.content or ""
        output.text = content if isinstance(content, str) else "".join(part.text or "" for part in content)
        reasoning = message.reasoning_content or message.reasoning
        output.reasoning = reasoning if isinstance(reasoning, str) else ""
        output.tool_calls = [self._called(call) for call in message.tool_calls or ()]

    def _called(self, call: _Call) -> ToolCallDelta:
        """Where it has no number, a new id or a name begins the next."""
        function = call.function or _Function()
        name, arguments = function.name or "", function.arguments or ""
        if call.index is not None:
            self._call = call.index
        elif self._call < 0 or name or call.id not in (None, "", self._call_id):
            self._call += 1
        self._call_id = call.id or self._call_id
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        return ToolCallDelta(self._call, name, arguments)

    def end(self) -> Output:
        if self._reason is None and not self._pieces:
            raise UpstreamFailed("The upstream's stream said nothing.")
        if self._reason is None:
            raise EngineFailed("The upstream's stream ended too soon.")
        if self._reason in BREAKS:
            raise EngineFailed(f"The upstream gave up: {self._reason}")
        return Output(
            id=self._request.id,
            finish_reason=REASONS.get(self._reason, "stop"),
            stop=self._stop,
            usage=_counted(self._usage, self._pieces),
        )


def embedded(request: EngineRequest, told: Any) -> Output:
    """Raises UpstreamFailed if there is not one for each input."""
    try:
        answer = msgspec.convert(told, _Embedded)
        rows = {row.index: _packed(row.embedding) for row in answer.data}
        embeddings = [rows.pop(place) for place in range(len(answer.data))]
    except (KeyError, ValueError, struct.error) as error:  # msgspec.ValidationError is a ValueError
        raise UpstreamFailed(f"The upstream's embeddings cannot be read: {error}") from error
    if (inputs := len(request.payload["inputs"])) != len(embeddings):
        raise UpstreamFailed(f"The upstream has embedded {len(embeddings)} of {inputs} inputs.")
    return Output(id=request.id, embeddings=embeddings, finish_reason="stop", usage=_counted(answer.usage, 0))


def _packed(embedding: str | Sequence[float]) -> str:
    """Base64 of little-endian float32, which some servers do not know. Raises ValueError."""
    if not isinstance(embedding, str):
        return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
    size = len(base64.b64decode(embedding, validate=True))  # binascii.Error is a ValueError
    if size == 0 or size % 4:
        raise ValueError(f"{size} bytes of float32")
    return embedding


def ranked(request: EngineRequest, told: Any) -> Output:
    """Raises UpstreamFailed if there is not a score for each document."""
    try:
        answer = msgspec.convert(told, _Ranked)
        found = {row.index: row.relevance_score for row in answer.results}
        scores = [found[place] for place in range(len(request.payload["documents"]))]
    except (msgspec.ValidationError, KeyError) as error:
        raise UpstreamFailed(f"The upstream's ranking cannot be read: {error}") from error
    usage = _counted(answer.usage, 0)
    return Output(id=request.id, result={"scores": scores}, finish_reason="stop", usage=usage)


def _counted(told: _Usage | None, pieces: int) -> Usage:
    told = told or _Usage()
    made = told.completion_tokens
    return Usage(
        prompt_tokens=_count(told.prompt_tokens or told.total_tokens),
        completion_tokens=pieces if made is None else _count(made),
        cached_tokens=_count((told.prompt_tokens_details or _Details()).cached_tokens),
        reasoning_tokens=_count((told.completion_tokens_details or _Details()).reasoning_tokens),
    )


def _count(told: float | None) -> int:
    return max(0, int(told or 0))


def _logprob(told: float | None) -> float:
    return LEAST if told is None else max(LEAST, told)


def _scored(told: _Scored) -> TokenLogprob:
    top = [Logprob(one.token, _logprob(one.logprob), one.bytes) for one in told.top_logprobs or ()]
    return TokenLogprob(told.token, _logprob(told.logprob), told.bytes, top)


def _of_completion(told: _Logprobs) -> list[TokenLogprob]:
    tokens = told.tokens or []
    values, tops = told.token_logprobs or [], told.top_logprobs or [None] * len(tokens)
    if not len(tokens) == len(values) == len(tops):
        raise UpstreamFailed("The upstream's logprobs are not those of its tokens.")
    return [
        TokenLogprob(token, None if value is None else _logprob(value), None, _tops(top))
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]


def _tops(top: dict[str, float | None] | None) -> list[Logprob]:
    return [Logprob(text, _logprob(value)) for text, value in (top or {}).items()]


def refused(data: bytes) -> tuple[str, str | None, str | None]:
    """What an error says, the parameter that is to blame, and its code; nothing where it is in no known form."""
    try:
        told = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return "", None, None
    told = told.get("error", told) if isinstance(told, dict) else told
    return _message_of(told), _said(told, "param"), _said(told, "code")


def _message_of(told: Any) -> str:
    return (_said(told, "message") or "") if isinstance(told, dict) else str(told)


def _said(told: Any, name: str) -> str | None:
    value = told.get(name) if isinstance(told, dict) else None
    return value if isinstance(value, str) else None
