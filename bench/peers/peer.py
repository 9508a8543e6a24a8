"""What all peers do: start their processes, wait until both models answer, and end whatever came of it."""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import httpx2

from bench.peers.environments import PLACE
from bench.systems import Kind, Role, Unavailable
from cli.stack import GATEWAY_TIER, WORKER_TIER
from cli.supervisor import ChildFailed, Service, Supervisor
from cli.valkey import free_port

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 120.0  # LiteLLM needs 10 s of CPU for its imports
GRACE_S = 5.0  # FastChat's servers would wait for open requests for ever
TIERS = {"gateway": GATEWAY_TIER, "worker": WORKER_TIER}


class Peer(ABC):
    """A `bench.systems.System`; its `version` is known once it has started."""

    name: str

    def __init__(self) -> None:
        self.base_url = ""
        self.version = ""
        self.models: dict[Kind, str] = {"fast": "fast", "paced": "paced"}
        self.processes: dict[Role, list[int]] = {}
        self._life = AsyncExitStack()

    async def start(self) -> None:
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        self.processes = {}
        try:
            self._supervisor = await self._life.enter_async_context(Supervisor(_say_nothing))
            await self.launch(port)
            for model in self.models.values():
                await self._until(partial(self._answers, model), f"model {model}")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await self._life.aclose()

    @abstractmethod
    async def launch(self, port: int) -> None:
        """Run what it consists of; the API is to listen on `port`. Raises Unavailable."""

    async def run(
        self, role: Role, part: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Its output goes to a file in the peers' folder, its modules may be of this checkout."""
        PLACE.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        service = Service(
            name=part,
            command=tuple(command),
            log=PLACE / f"{self.name}.{part}.log",
            tier=TIERS[role],
            grace_s=GRACE_S,
            environment={"NO_PROXY": "127.0.0.1", "PYTHONPATH": path, **(environment or {})},
        )
        self.processes.setdefault(role, []).append((await self._supervisor.start(service)).pid)

    async def until_it_listens(self, port: int) -> None:
        await self._until(lambda: _listens(port), f"port {port}")

    async def _until(self, ready: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await self._supervisor.until(ready)
        except ChildFailed as error:
            raise Unavailable(f"{str(error).partition(';')[0]}; its log is in {PLACE}") from None
        except TimeoutError:
            raise Unavailable(f"{what} did not answer within {READY_WITHIN_S:g} s; logs are in {PLACE}") from None

    async def _answers(self, model: str) -> bool:
        body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Are you there?"}]}
        async with httpx2.AsyncClient(trust_env=False, timeout=READY_WITHIN_S) as client:
            try:
                return (await client.post(f"{self.base_url}/v1/chat/completions", json=body)).is_success
            except httpx2.TransportError:
                return False


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def _say_nothing(text: str) -> None:
    """Of the supervisor's messages only failures matter here, and they raise."""
