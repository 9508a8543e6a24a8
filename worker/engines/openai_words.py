"""The OpenAI API's words for what a job asks, as an upstream understands them."""

from collections.abc import Sequence
from typing import Any

from shared.messages import SamplingParams, Structured
from worker.engines.base import EngineRequest

SAMPLING = (
    *("top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("logit_bias", "min_tokens", "ignore_eos", "stop", "stop_token_ids"),
)
STANDARD = SamplingParams(seed=0)  # what is so is not sent: not every server knows every parameter


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
