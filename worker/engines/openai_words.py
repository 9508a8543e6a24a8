"""The OpenAI API's words for what a job asks, and what its answers say, as an upstream speaks them."""

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import EngineFailed, UpstreamFailed
from shared.messages import FinishReason, Logprob, SamplingParams, Structured, TokenLogprob, ToolCallDelta, Usage
from worker.engines.base import EngineRequest, Output

SAMPLING = (
    *("top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("logit_bias", "min_tokens", "ignore_eos", "stop", "stop_token_ids"),
)
STANDARD = SamplingParams(seed=0)  # what is so is not sent: not every server knows every parameter
REASONS: dict[str, FinishReason] = {"length": "length"}  # all others are an end


class Reply:
    """Reads the chunks of one."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._reason: str | None = None
        self._stop: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._pieces = 0

    def take(self, chunk: Mapping[str, Any]) -> Output | None:
        if (error := chunk.get("error")) is not None:
            raise EngineFailed(f"The upstream failed: {message_of(error)}")
        self._usage = chunk.get("usage") or self._usage
        choices = chunk.get("choices") or []
        if not choices:
            return None
        choice = choices[0]
        self._reason = choice.get("finish_reason") or self._reason
        if isinstance(choice.get("stop_reason"), str):
            self._stop = choice["stop_reason"]
        output = Output(id=self._request.id)
        if self._request.kind == "chat":
            delta = choice.get("delta") or {}
            output.text = delta.get("content") or ""
            output.reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            output.tool_calls = [_call(call) for call in delta.get("tool_calls") or []]
            output.logprobs = [_logprob(one) for one in (choice.get("logprobs") or {}).get("content") or []]
        else:
            output.text = choice.get("text") or ""
            output.logprobs = _legacy_logprobs(choice.get("logprobs") or {})
        if not output.is_something:
            return None
        self._pieces += 1
        return output

    def end(self) -> Output:
        if self._reason is None and not self._pieces:
            raise UpstreamFailed("The upstream's stream said nothing.")
        if self._reason is None:
            raise EngineFailed("The upstream's stream ended too soon.")
        return Output(
            id=self._request.id,
            finish_reason=REASONS.get(self._reason, "stop"),
            stop=self._stop,
            usage=_usage(self._usage or {}, self._pieces),
        )


def chat(request: EngineRequest) -> dict[str, Any]:
    payload, body = request.payload, {"messages": request.payload["messages"]}
    if tools := payload.get("tools"):
        body["tools"] = [{"type": "function", "function": tool} for tool in tools]
        choice = payload.get("tool_choice") or {"mode": "auto", "names": None}
        body["tool_choice"] = _tool_choice(choice["mode"], choice.get("names"))
        if payload.get("parallel_tool_calls") is False:
            body["parallel_tool_calls"] = False
    if template := payload.get("template"):
        body["chat_template_kwargs"] = template
    for name in ("reasoning_effort", "continue_final_message", "add_generation_prompt"):
        if name in payload:
            body[name] = payload[name]
    logprobs = request.sampling.logprobs
    return body if logprobs is None else {**body, "logprobs": True, "top_logprobs": logprobs}


def _tool_choice(mode: str, names: list[str] | None) -> Any:
    if not names:
        return mode
    functions = [{"type": "function", "function": {"name": name}} for name in names]
    if mode == "required" and len(functions) == 1:
        return functions[0]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": functions}}


def completion(request: EngineRequest) -> dict[str, Any]:
    sampling, body = request.sampling, {"prompt": request.payload["prompt"]}
    if sampling.echo:
        body["echo"] = True
    return body if sampling.logprobs is None else {**body, "logprobs": sampling.logprobs}


def sampling(request: EngineRequest) -> dict[str, Any]:
    asked = request.sampling
    body = {name: getattr(asked, name) for name in SAMPLING if getattr(asked, name) != getattr(STANDARD, name)}
    body |= {"temperature": asked.temperature, "top_p": asked.top_p}  # which a server may have other defaults for
    if asked.seeded:
        body["seed"] = (asked.seed + request.choice) % 2**31  # each choice is a request of its own
    if asked.structured is not None:
        body |= _structured(asked.structured)
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


def _structured(structured: Structured) -> dict[str, Any]:
    if structured.kind != "json":
        return {"structured_outputs": {structured.kind: structured.value}}
    if structured.value is True:
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "reply", "schema": structured.value, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def inputs(given: Sequence[str | list[int]], dimensions: int | None = None) -> dict[str, Any]:
    size = {} if dimensions is None else {"dimensions": dimensions}
    return {"input": given, "encoding_format": "base64", **size}


def embedded(request: EngineRequest, answer: Any) -> Output:
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        embeddings = [_packed(row["embedding"]) for row in rows]
    except (KeyError, TypeError, struct.error) as error:
        raise UpstreamFailed(f"The upstream's embeddings cannot be read: {error}") from error
    usage = _usage(answer.get("usage") or {}, 0)
    return Output(id=request.id, embeddings=embeddings, finish_reason="stop", usage=usage)


def _packed(embedding: str | list[float]) -> str:
    """Base64 of little-endian float32, which some servers do not know."""
    if isinstance(embedding, str):
        return embedding
    return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()


def ranked(request: EngineRequest, answer: Any) -> Output:
    try:
        found = {row["index"]: float(row["relevance_score"]) for row in answer["results"]}
        scores = [found[place] for place in range(len(request.payload["documents"]))]
    except (KeyError, TypeError, ValueError) as error:
        raise UpstreamFailed(f"The upstream's ranking cannot be read: {error}") from error
    usage = _usage(answer.get("usage") or {}, 0)
    return Output(id=request.id, result={"scores": scores}, finish_reason="stop", usage=usage)


def _usage(told: Mapping[str, Any], pieces: int) -> Usage:
    made = told.get("completion_tokens")
    return Usage(
        prompt_tokens=told.get("prompt_tokens") or told.get("total_tokens") or 0,
        completion_tokens=pieces if made is None else made,
        cached_tokens=(told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        reasoning_tokens=(told.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
    )


def _call(call: Mapping[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(call.get("index") or 0, function.get("name") or "", function.get("arguments") or "")


def _logprob(told: Mapping[str, Any]) -> TokenLogprob:
    top = [Logprob(one["token"], one["logprob"], one.get("bytes")) for one in told.get("top_logprobs") or []]
    return TokenLogprob(told["token"], told["logprob"], told.get("bytes"), top)


def _legacy_logprobs(told: Mapping[str, Any]) -> list[TokenLogprob]:
    tokens = told.get("tokens") or []
    tops = told.get("top_logprobs") or [None] * len(tokens)
    return (
        [
            TokenLogprob(token, value, None, [Logprob(text, probable) for text, probable in (top or {}).items()])
            for token, value, top in zip(tokens, told["token_logprobs"], tops, strict=True)
        ]
        if tokens
        else []
    )


def message_of(told: Any) -> str:
    return (said(told, "message") or "") if isinstance(told, Mapping) else str(told)


def said(told: Any, name: str) -> str | None:
    value = told.get(name) if isinstance(told, Mapping) else None
    return value if isinstance(value, str) else None
