"""What a system under test is: something that starts by itself and then answers OpenAI requests at an address."""

from typing import Literal, Protocol, runtime_checkable

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
