"""`python -m bench.peers.floor_server --port N MODEL...`: the gateway without a bus.

Server, routes, validation, answers and templates are the gateway's. Its tokens come from steps on its own loop.
"""

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import uvloop
from fastapi import FastAPI
from pydantic import BaseModel

from bench.peers.steps import TOKEN, Steps
from bench.systems import PACE_MS
from gateway.app import Gateway
from gateway.asked import Asked
from gateway.client import Client
from gateway.endpoints import Accepted
from gateway.generate import Answer
from gateway.hub import Hub
from gateway.listener import listen
from gateway.schemas.base import GenerationRequest
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.completion import CompletionRequest
from gateway.server import Server, configured
from gateway.settings import GatewaySettings
from shared.errors import ModelNotFound, UnsupportedModel
from shared.messages import Job, Progress, Usage

DEFAULT_TOKENS = 16
PROMPT_TOKENS = 1


@dataclass(slots=True)
class Sequence:
    """What is still to be made of one choice. An answer asks its jobs for nothing but their ids."""

    id: str
    answer: Answer | None
    index: int
    tokens: int
    made: int = 0

    def advance(self) -> bool:
        assert self.answer is not None
        mailbox = self.answer.mailbox
        mailbox.add(self.index, Progress(text=TOKEN))
        self.made += 1
        if self.made < self.tokens:
            return True
        mailbox.finish(self.index, "length", Usage(PROMPT_TOKENS, self.made))
        return False


class Producer:
    """In the place of hub and generator: an answer whose tokens come with the next steps of its model."""

    def __init__(self, models: Iterable[str]) -> None:
        self._steps = {name: Steps(PACE_MS / 1000 if name == "paced" else 0.0) for name in models}

    async def chat(self, body: ChatCompletionRequest, asked: Asked) -> Answer:
        return self._begin(body, f"chatcmpl-{asked.hex}", 1, body.limit)

    async def completion(self, body: CompletionRequest, asked: Asked) -> Answer:
        return self._begin(body, f"cmpl-{asked.hex}", len(body.prompts), body.limit)

    async def embedding(self, body: BaseModel, asked: Asked) -> Answer:
        raise UnsupportedModel("There are no embeddings here.")

    def cancel(self, ids: Iterable[str], reason: str = "") -> None:
        for id in ids:
            for steps in self._steps.values():
                steps.discard(id)

    def _begin(self, body: GenerationRequest, id: str, prompts: int, limit: int | None) -> Answer:
        if body.model not in self._steps:
            raise ModelNotFound(f"The model '{body.model}' does not exist.", param="model")
        choices = body.n or 1
        tokens = limit or DEFAULT_TOKENS
        sequences = [Sequence(f"{id}-{index}", None, index, tokens) for index in range(prompts * choices)]
        answer = Answer(cast(Hub, self), id, body.model, cast(list[Job], sequences), choices)
        for sequence in sequences:
            sequence.answer = answer
            self._steps[body.model].add(sequence.id, sequence.advance)
        return answer


class Nothing:
    """In the place of stored responses: there is nowhere to store them."""

    async def create(self, body: BaseModel, asked: Asked) -> Answer:
        raise UnsupportedModel("Nothing is stored without a bus.")

    count = create


class GatewayWithoutBus:
    """What the application and the server ask of a gateway, as far as a benchmark goes."""

    def __init__(self, models: Iterable[str], request_timeout: float) -> None:
        self.generator = Producer(models)
        self.responses = Nothing()
        self.request_timeout = request_timeout

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield

    async def is_ready(self) -> bool:
        return True

    def stop(self, grace: float) -> None:
        pass

    async def route(self, name: str, user: str | None, client: Client) -> str:
        return name

    async def accept(self, act: Callable[[], Awaitable[Accepted]]) -> Accepted:
        return await act()


async def serve(port: int, models: list[str]) -> None:
    """With the gateway's own defaults."""
    (listener,) = listen("127.0.0.1", port)
    settings = GatewaySettings.model_construct(drain_timeout=0)
    gateway = cast(Gateway, GatewayWithoutBus(models, settings.request_timeout))
    await Server(configured(gateway, settings), gateway, 0, lambda: None).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    uvloop.run(serve(given.port, given.models))


if __name__ == "__main__":
    main()
