"""What is answered at once, without a token being made: tokens, their text, and rankings."""

from collections.abc import Callable
from typing import Any

from gateway.asked import Asked
from gateway.bodies import Bodies
from gateway.endpoints import Acceptance, Endpoint
from gateway.generate import Answer
from gateway.inflight import Update
from gateway.replies import Reply, WholeReply
from gateway.schemas.rerank import RerankRequest
from gateway.schemas.tokens import DetokenizeRequest, TokenizeRequest

Results = list[dict[str, Any]]


class ResultReply(WholeReply):
    """Made of the results of a request's jobs, in their order."""

    def __init__(self, answer: Answer, make: Callable[[Results], dict[str, Any]]) -> None:
        super().__init__(answer)
        self._make = make
        self._results: dict[int, dict[str, Any]] = {}

    def collect(self, update: Update) -> None:
        if update.result is not None:
            self._results[update.index] = update.result

    def result(self) -> dict[str, Any]:
        return self._make([self._results[index] for index in range(self.answer.choices)])


def tokens_of(body: TokenizeRequest, answer: Answer, results: Results) -> dict[str, Any]:
    tokens = results[0]["tokens"]
    return {
        "count": len(tokens),
        "max_model_len": answer.max_model_len,
        "tokens": tokens,
        "token_strs": results[0]["token_strs"] if body.return_token_strs else None,
    }


def ranking_of(body: RerankRequest, answer: Answer, results: Results) -> dict[str, Any]:
    """Best first; equals in the order of the request."""
    scores: list[float] = [score for result in results for score in result["scores"]]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    usage = answer.usage()
    return {
        "id": answer.id,
        "model": answer.model,
        "usage": {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["total_tokens"]},
        "results": [{"index": index, **_document(body, index), "relevance_score": scores[index]} for index in best],
    }


def _document(body: RerankRequest, index: int) -> dict[str, Any]:
    return {"document": {"text": body.texts[index]}} if body.return_documents is not False else {}


def result_endpoints(gateway: Acceptance, bodies: Bodies) -> dict[str, Endpoint[Any]]:
    """By path."""
    generator = gateway.generator

    async def submit_tokenize(body: TokenizeRequest, asked: Asked) -> Answer:
        return await generator.ask("tokenize", [body.payload()], asked)

    def tokens(body: TokenizeRequest, answer: Answer) -> Reply:
        return ResultReply(answer, lambda results: tokens_of(body, answer, results))

    async def submit_detokenize(body: DetokenizeRequest, asked: Asked) -> Answer:
        return await generator.ask("detokenize", [{"tokens": body.tokens}], asked)

    def text(_: DetokenizeRequest, answer: Answer) -> Reply:
        return ResultReply(answer, lambda results: {"prompt": results[0]["prompt"]})

    async def submit_rerank(body: RerankRequest, asked: Asked) -> Answer:
        return await generator.ask("rerank", body.payloads(), asked)

    def ranking(body: RerankRequest, answer: Answer) -> Reply:
        return ResultReply(answer, lambda results: ranking_of(body, answer, results))

    async def tokenize() -> None:
        """The token ids of a text, or of a conversation as the model's template writes it."""

    async def detokenize() -> None:
        """The text of token ids."""

    async def rerank() -> None:
        """Documents in the order of how well they answer a query: a cross-encoder's judgement (0 to 1), or the cosine
        similarity of an embedding model."""

    rank = Endpoint(gateway, bodies, RerankRequest, submit_rerank, ranking, rerank)
    return {
        "/tokenize": Endpoint(gateway, bodies, TokenizeRequest, submit_tokenize, tokens, tokenize),
        "/detokenize": Endpoint(gateway, bodies, DetokenizeRequest, submit_detokenize, text, detokenize),
        "/rerank": rank,
        "/v1/rerank": rank,
    }
