"""What each operation answers. A new route needs a row here; its path, summary, request, and the parameters of its path
and query come from the route itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.anthropic.errors import PATH as MESSAGES
from gateway.description.anthropic_shapes import MadeMessage, MessageEvent, TokenCount
from gateway.description.response_shapes import DeletedResponse, InputItems, InputTokens, Response, ResponseStreamEvent
from gateway.description.shapes import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Embeddings,
    Health,
    Model,
    Models,
    Ranking,
    Text,
    Tokens,
    Version,
)
from gateway.responses.errors import PATH as RESPONSES

Parameter = dict[str, Any]

# Of every operation: HTTP that cannot be read, a head that is too large, a fault of ours, too many connections.
ANYWHERE = (400, 431, 500, 503)
MAY_BE_MISSING = (404,)
CHANGES = (404, 429)  # Redis may be full
WORKS = (404, 413, 415, 429, 504)


@dataclass(frozen=True)
class Answers:
    """`body`: the type of a 200's; None: text. `events`: the type of what each event of a stream says, if it can be
    one; `last`: what the last one says instead. `errors`: statuses besides those of every operation. `parameters`:
    headers, besides those that every operation has, as OpenAPI has them."""

    tag: str
    body: Any = None
    events: Any = None
    last: str | None = None
    errors: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()


TIMEOUT: Parameter = {
    "name": "x-request-timeout",
    "in": "header",
    "description": "The request ends with an error after so many seconds; never later than the server's own limit.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
RETRIES: Parameter = {
    "name": "x-stainless-retry-count",
    "in": "header",
    "description": "0: this is no retry of a request that was refused with 429. Libraries send it.",
    "schema": {"type": "string"},
}
WORK = (TIMEOUT, RETRIES)

OPENAI, ANTHROPIC, PEERS, OPERATION = "OpenAI", "Anthropic", "vLLM, Jina", "Operation"


def _works(tag: str, body: Any, events: Any = None, last: str | None = None) -> Answers:
    return Answers(tag, body, events, last, WORKS, WORK)


ANSWERS: Mapping[tuple[str, str], Answers] = {
    ("POST", "/v1/chat/completions"): _works(OPENAI, ChatCompletion, ChatCompletionChunk, "[DONE]"),
    ("POST", "/v1/completions"): _works(OPENAI, Completion, CompletionChunk, "[DONE]"),
    ("POST", "/v1/embeddings"): _works(OPENAI, Embeddings),
    ("GET", "/v1/models"): Answers(OPENAI, Models),
    ("GET", "/v1/models/{name}"): Answers(OPENAI, Model, errors=MAY_BE_MISSING),
    ("POST", RESPONSES): _works(OPENAI, Response, ResponseStreamEvent),
    ("POST", f"{RESPONSES}/input_tokens"): _works(OPENAI, InputTokens),
    ("GET", f"{RESPONSES}/{{id}}"): Answers(OPENAI, Response, ResponseStreamEvent, errors=MAY_BE_MISSING),
    ("DELETE", f"{RESPONSES}/{{id}}"): Answers(OPENAI, DeletedResponse, errors=CHANGES),
    ("POST", f"{RESPONSES}/{{id}}/cancel"): Answers(OPENAI, Response, errors=CHANGES),
    ("GET", f"{RESPONSES}/{{id}}/input_items"): Answers(OPENAI, InputItems, errors=MAY_BE_MISSING),
    ("POST", MESSAGES): _works(ANTHROPIC, MadeMessage, MessageEvent),
    ("POST", f"{MESSAGES}/count_tokens"): _works(ANTHROPIC, TokenCount),
    ("POST", "/v1/rerank"): _works(PEERS, Ranking),
    ("POST", "/rerank"): _works(PEERS, Ranking),
    ("POST", "/tokenize"): _works(PEERS, Tokens),
    ("POST", "/detokenize"): _works(PEERS, Text),
    ("GET", "/health"): Answers(OPERATION, Health),
    ("GET", "/livez"): Answers(OPERATION, Health),
    ("GET", "/readyz"): Answers(OPERATION, Health),
    ("GET", "/version"): Answers(OPERATION, Version),
    ("GET", "/metrics"): Answers(OPERATION),
}
