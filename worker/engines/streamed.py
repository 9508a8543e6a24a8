"""Drives an engine that batches by itself, as a library or as a server, and answers each sequence asynchronously."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import Any, Protocol

from shared.errors import EngineFailed, TokenbusError
from shared.logging import get_logger
from worker.engines.base import Deliver, EngineInfo, EngineRequest, Output
from worker.engines.figures import CacheFigures, StepTimes

log = get_logger(__name__)


class Streamer(Protocol):
    """All but `load` and `prepare` run on the event loop."""

    def load(self) -> EngineInfo: ...

    def prepare(self, request: EngineRequest) -> Any:
        """In a thread, one request after the other: tokenize and check. An Output is the answer. Raises TokenbusError
        for what the client got wrong."""

    async def start(self) -> None:
        """Before the first request. Raises EngineFailed if it cannot."""

    def stream(self, prepared: Any) -> AsyncIterator[Output]:
        """Up to an output that ends it. Closed before that, it leaves nothing running. Raises TokenbusError."""

    def accepts(self) -> bool: ...

    def stalled_for(self) -> float: ...

    def step_ms(self) -> float: ...

    def cache(self) -> CacheFigures: ...

    async def stop(self) -> None: ...


class StreamedEngine:
    """Runs a Streamer: a task for each request, and one delivery for all that they make in one turn of the loop."""

    def __init__(self, streamer: Streamer, hang_timeout: float) -> None:
        """hang_timeout: s without a step, after half of which an engine whose requests were all aborted may hang."""
        self._streamer = streamer
        self._doubtful_s = hang_timeout / 2
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._outputs: list[Output] = []
        self._doubted_since: float | None = None

    def load(self) -> EngineInfo:
        return self._streamer.load()

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_task(self._streamer.start())

    def submit(self, request: EngineRequest) -> None:
        task = self._loop.create_task(self._run(request), name=request.id)
        self._tasks[request.id] = task
        task.add_done_callback(lambda done: self._forget(request.id, done))

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(request_id) is task:
            del self._tasks[request_id]

    def abort(self, request_id: str) -> None:
        if (task := self._tasks.pop(request_id, None)) is not None:
            if (stalled := self._streamer.stalled_for()) > self._doubtful_s:
                self._doubted_since = time.monotonic() - stalled
            task.cancel()
            self._outputs = [output for output in self._outputs if output.id != request_id]

    def accepts(self) -> bool:
        return self._streamer.accepts()

    def stalled_for(self) -> float:
        """Of an engine that had hung, also when it has nothing to do any more: until it moves."""
        if self._tasks:
            return self._streamer.stalled_for()
        return 0.0 if self._doubted_since is None else time.monotonic() - self._doubted_since

    def step_ms(self) -> float:
        return self._streamer.step_ms()

    def cache(self) -> CacheFigures:
        return self._streamer.cache()

    async def stop(self) -> None:
        tasks = [self._started, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._streamer.stop()

    async def _run(self, request: EngineRequest) -> None:
        try:
            await asyncio.shield(self._started)
            prepared = await self._loop.run_in_executor(self._preparer, self._streamer.prepare, request)
            if isinstance(prepared, Output):
                self._gather(prepared)
                return
            async with aclosing(self._streamer.stream(prepared)) as outputs:  # type: ignore[type-var]
                async for output in outputs:
                    self._gather(output)
        except TokenbusError as error:
            self._gather(Output(id=request.id, error=error))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a panic in a tokenizer is no Exception
            log.exception("request %s failed", request.id)
            self._gather(Output(id=request.id, error=EngineFailed(f"The engine failed: {error}")))

    def _gather(self, output: Output) -> None:
        self._doubted_since = None
        if not self._outputs:
            self._loop.call_soon(self._hand_over)
        self._outputs.append(output)

    def _hand_over(self) -> None:
        outputs, self._outputs = self._outputs, []
        if outputs:
            self._deliver(outputs)


class Clock:
    """Of an engine that says when it has made a step: how long that took, and how long ago the last one was."""

    def __init__(self) -> None:
        self._times = StepTimes()
        self._working = 0
        self._moved_at = 0.0

    @contextmanager
    def works(self) -> Iterator[None]:
        """While there is something to compute."""
        if self._working == 0:
            self._moved_at = time.monotonic()
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    def step(self) -> None:
        if self._working:
            now = time.monotonic()
            self._times.add(now - self._moved_at)
            self._moved_at = now

    def stalled_for(self) -> float:
        return time.monotonic() - self._moved_at if self._working else 0.0

    def step_ms(self) -> float:
        return self._times.quick_ms()
