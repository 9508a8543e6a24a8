"""The routes of the Messages API."""

from functools import partial
from typing import Any

from gateway.anthropic.errors import PATH
from gateway.anthropic.replies import MessageEvents, MessageReply
from gateway.anthropic.schemas import CountTokensRequest, MessagesRequest
from gateway.asked import Asked
from gateway.bodies import Bodies
from gateway.endpoints import Acceptance, Endpoint
from gateway.generate import Answer
from gateway.replies import Reply, StreamReply
from gateway.results import ResultReply


def message_endpoints(gateway: Acceptance, bodies: Bodies) -> dict[str, Endpoint[Any]]:
    """By path."""
    generator = gateway.generator

    async def submit(body: MessagesRequest, asked: Asked) -> Answer:
        return await generator.chat(body.chat(), asked, "msg_")

    def reply(body: MessagesRequest, answer: Answer) -> Reply:
        if body.stream:
            events = partial(MessageEvents, shows_thinking=body.shows_thinking)
            return StreamReply(answer, events, include_usage=True)
        return MessageReply(answer, shows_thinking=body.shows_thinking)

    async def count(body: CountTokensRequest, asked: Asked) -> Answer:
        payload = body.chat().payload() | {"add_special_tokens": False}
        return await generator.ask("tokenize", [payload], asked)

    def counted(_: CountTokensRequest, answer: Answer) -> Reply:
        return ResultReply(answer, lambda results: {"input_tokens": len(results[0]["tokens"])})

    async def messages() -> None:
        """Anthropic's Messages: the next message of a conversation; with `stream`, as server-sent events."""

    async def count_tokens() -> None:
        """How many tokens the prompt of such a request has."""

    return {
        PATH: Endpoint(gateway, bodies, MessagesRequest, submit, reply, messages),
        f"{PATH}/count_tokens": Endpoint(gateway, bodies, CountTokensRequest, count, counted, count_tokens),
    }
