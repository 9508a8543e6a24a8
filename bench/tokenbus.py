"""This project as a system under test: an embedded Valkey, gateways, and echo workers, in a folder of their own."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2

from bench.systems import PACE_MS, Kind, Role, Unavailable
from cli.stack import CLEARED, GATEWAY_TIER, WORKER_TIER, valkey
from cli.supervisor import ChildFailed, Service, Supervisor
from cli.valkey import EmbeddedValkey, free_port
from registry.directory import take_snapshot
from shared.connection import BUS_ERRORS, connect
from shared.errors import StartupError
from shared.keys import Keys

ROOT = Path(__file__).resolve().parents[1]
SLOTS = 1024  # per model: nothing waits for one
MAX_QUEUE = 4096  # nothing is refused
READY_WITHIN_S = 300.0  # a real engine loads weights, and may compile
GRACE_S = 5.0


class Bus:
    """Parts are added while it runs; all end with it, and its folder goes."""

    def __init__(self, supervisor: Supervisor, folder: Path) -> None:
        self._supervisor = supervisor
        self._folder = folder
        self._count = 0
        self.redis_url = ""
        self.processes: dict[Role, list[int]] = {"gateway": [], "redis": [], "worker": []}

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator["Bus"]:
        """With a Redis that answers, configured as `tokenbus up` does it."""
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenbus-bench-")))
            server = EmbeddedValkey(folder / "valkey")
            lock = stack.enter_context(server.locked())
            stack.enter_context(server.configured())
            supervisor = await stack.enter_async_context(Supervisor(_say_nothing))
            bus = cls(supervisor, folder)
            bus.redis_url = server.url
            await bus._start("redis", valkey(server, lock, folder))
            await bus._until(bus._redis_answers, "Redis")
            yield bus

    async def gateway(self, *flags: str, namespace: str = "tokenbus") -> str:
        """Its address, once it is ready."""
        port = free_port()
        flags = ("--port", str(port), "--max-queue", str(MAX_QUEUE), *flags)
        await self._start("gateway", self._service("gateway", GATEWAY_TIER, namespace, *flags))
        url = f"http://127.0.0.1:{port}"
        await self._until(lambda: _answers(url + "/readyz"), "gateway")
        return url

    async def workers(
        self, model: str, count: int, *, slots: int, step_ms: float = 0, namespace: str = "tokenbus"
    ) -> None:
        """Echo workers, added to those that the model has; they may still be starting."""
        for _ in range(count):
            flags = ["--engine", "echo", "--model-names", model, "--limit-worker-concurrency", str(slots)]
            flags += ["--echo-interval-ms", f"{step_ms:g}"] if step_ms else []
            await self._start("worker", self._service("worker", WORKER_TIER, namespace, *flags))

    async def worker(self, *flags: str, namespace: str = "tokenbus") -> None:
        """One with these flags; it may still be starting."""
        await self._start("worker", self._service("worker", WORKER_TIER, namespace, *flags))

    async def ready(self, url: str, workers: dict[str, int], namespace: str = "tokenbus") -> None:
        """Returns once each model has so many workers, and the gateway at `url` lists it."""

        async def all_there() -> bool:
            redis = connect(self.redis_url)
            try:
                found = (await take_snapshot(redis, Keys(namespace))).workers
            finally:
                await redis.aclose()
            return all(len(found.get(model, ())) >= count for model, count in workers.items()) and await _lists(
                url, set(workers)
            )

        await self._until(all_there, f"workers {workers}")

    def _service(self, module: str, tier: int, namespace: str, *flags: str) -> Service:
        self._count += 1
        return Service(
            name=module,
            command=(sys.executable, "-m", module, "--namespace", namespace, "--log-level", "warning", *flags),
            environment={**CLEARED, "REDIS_URL": self.redis_url, "TOKENBUS_API_KEYS": ""},
            log=self._folder / f"{module}-{self._count}.log",
            tier=tier,
            grace_s=GRACE_S,
        )

    async def _start(self, role: Role, service: Service) -> None:
        """From this checkout, wherever the process is started in."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        service = replace(service, environment={**service.environment, "PYTHONPATH": path})
        self.processes[role].append((await self._supervisor.start(service)).pid)

    async def _until(self, ready: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await self._supervisor.until(ready)
        except ChildFailed as error:
            raise Unavailable(str(error)) from None
        except TimeoutError:
            raise Unavailable(f"{what} did not get ready within {READY_WITHIN_S:g} s") from None

    async def _redis_answers(self) -> bool:
        redis = connect(self.redis_url)
        try:
            return bool(await redis.ping())
        except BUS_ERRORS:
            return False
        finally:
            await redis.aclose()


class Tokenbus:
    """`gateways` processes with a port each, among which the clients take turns; each of `gateway_workers`
    processes behind its port."""

    name = "tokenbus"

    def __init__(self, *, gateways: int = 1, gateway_workers: int = 1, workers: int = 1) -> None:
        self._gateways = gateways
        self._gateway_workers = gateway_workers
        self._workers = workers
        self._life = AsyncExitStack()
        self.base_url = ""
        self.models: dict[Kind, str] = {"fast": "fast", "paced": "paced"}
        self.processes: dict[Role, list[int]] = {}

    async def start(self) -> None:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        try:
            bus = await self._life.enter_async_context(Bus.started())
        except (StartupError, ImportError) as error:
            raise Unavailable(str(error)) from None
        self.processes = bus.processes
        slots = SLOTS // self._workers
        await bus.workers(self.models["fast"], self._workers, slots=slots)
        await bus.workers(self.models["paced"], self._workers, slots=slots, step_ms=PACE_MS)
        flags = ("--workers", str(self._gateway_workers)) if self._gateway_workers > 1 else ()
        urls = [await bus.gateway(*flags) for _ in range(self._gateways)]
        self.base_url = ",".join(urls)
        for url in urls:
            await bus.ready(url, dict.fromkeys(self.models.values(), self._workers))

    async def stop(self) -> None:
        await self._life.aclose()


def _plain_http() -> httpx2.AsyncClient:
    """Without reading the authorities that the machine trusts: 50 to 70 ms of CPU time, in each look."""
    return httpx2.AsyncClient(verify=False)


async def _answers(url: str) -> bool:
    async with _plain_http() as http:
        try:
            return (await http.get(url)).is_success
        except httpx2.TransportError:
            return False


async def _lists(url: str, models: set[str]) -> bool:
    async with _plain_http() as http:
        reply = await http.get(url + "/v1/models")
    return models <= {row["id"] for row in reply.json().get("data", ())}


def _say_nothing(text: str) -> None:
    """Of the supervisor's messages only failures matter here, and they raise."""
