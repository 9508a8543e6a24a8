"""What a system under test is: something that starts by itself and then answers OpenAI requests at an address."""

from importlib import import_module
from typing import Literal, Protocol, cast, runtime_checkable

Kind = Literal["fast", "paced"]  # the model that gives tokens as fast as it can, and the one with a chunk per 10 ms
Role = Literal["gateway", "redis", "worker"]  # a system has those that it needs; who fits none is a gateway

PACE_MS = 10  # of the paced model: one chunk per request every so often


class Unavailable(Exception):
    """A system cannot be set up on this machine; the message says why, in one line."""


@runtime_checkable
class System(Protocol):
    """Made by a constructor without arguments, so that it can be named as `module:Class`.

    `base_url`, `models` and `processes` hold from `start` to `stop`. A model answers `max_tokens` N with N tokens,
    one by one where it streams, for any prompt.
    """

    name: str
    base_url: str  # http://host:port, without /v1; several, separated by commas, where the clients are to take turns
    models: dict[Kind, str]
    processes: dict[Role, list[int]]  # pids; whatever they start counts with them

    async def start(self) -> None:
        """Returns once both models answer. Raises Unavailable, and then leaves nothing running."""

    async def stop(self) -> None:
        """Ends everything that was started; also after a `start` that failed or was cancelled. Idempotent."""


SYSTEMS = {
    "tokenbus": "bench.tokenbus:Tokenbus",
    "floor": "bench.peers.floor:Floor",
    "fastchat": "bench.peers.fastchat:FastChat",
    "litellm": "bench.peers.litellm:LiteLLM",
}


def create(name: str) -> System:
    """Raises Unavailable if what it needs to be imported is not there."""
    module, _, kind = SYSTEMS[name].partition(":")
    try:
        return cast(System, getattr(import_module(module), kind)())
    except ImportError as error:
        raise Unavailable(str(error)) from None
