"""What all peers do: launch, wait until both models answer, and end whatever came of it."""

import asyncio
import time
from abc import ABC, abstractmethod
from typing import ClassVar

import httpx2

from bench.peers.places import free_port
from bench.peers.processes import Processes
from bench.systems import Kind, Role, Unavailable

ANSWERS_WITHIN_S = 90.0  # LiteLLM takes 10 s to import on a busy machine
LOOK_EVERY_S = 0.1


class Peer(ABC):
    """A `bench.systems.System`; `version` is known from `start` on."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.base_url = ""
        self.version = ""
        self.models: dict[Kind, str] = {"fast": "fast", "paced": "paced"}
        self._processes = Processes(self.name.lower())

    @property
    def processes(self) -> dict[Role, list[int]]:
        return self._processes.pids

    async def start(self) -> None:
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        try:
            await self.launch(port)
            for model in self.models.values():
                await self._answers(model)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await self._processes.end()

    @abstractmethod
    async def launch(self, port: int) -> None:
        """Start the processes; the API is to listen on `port`. Raises Unavailable."""

    async def listens(self, port: int) -> None:
        """Wait until somebody does."""
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await self._pause(deadline, f"nothing listens on port {port}")
            else:
                writer.close()
                await writer.wait_closed()
                return

    async def _answers(self, model: str) -> None:
        body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Are you there?"}]}
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        async with httpx2.AsyncClient(base_url=self.base_url, trust_env=False, timeout=ANSWERS_WITHIN_S) as client:
            while True:
                try:
                    response = await client.post("/v1/chat/completions", json=body)
                    if response.status_code == 200:
                        return
                    last = f"{model} answers {response.status_code}"
                except httpx2.HTTPError as error:
                    last = f"{model} does not answer: {error!r}"
                await self._pause(deadline, last)

    async def _pause(self, deadline: float, last: str) -> None:
        self._processes.check()
        if time.monotonic() > deadline:
            raise Unavailable(f"{self.name}: {last} after {ANSWERS_WITHIN_S:g} s")
        await asyncio.sleep(LOOK_EVERY_S)
