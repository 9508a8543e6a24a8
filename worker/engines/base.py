"""What an engine is, and the thread that drives one that works in steps.

`Engine` is what the worker sees. An engine that computes in blocking steps implements `Stepper`, and
`SteppedEngine` runs it in a thread of its own, so that the event loop is never held.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from shared.errors import EngineFailed, TokenbusError
from shared.logging import get_logger
from shared.messages import FinishReason, Kind, Progress, Resume, SamplingParams, Usage
from worker.engines.figures import CacheFigures, StepTimes

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine says of itself.

    fingerprint: equal for two workers if and only if one may continue the other's sequences.
    max_model_len: prompt and completion together, in tokens. slots: sequences that run together. adapters: by name,
    the fingerprint of the model with each of them.
    """

    name: str
    fingerprint: str
    max_model_len: int
    slots: int
    resumable: bool
    adapters: Mapping[str, str] = field(default_factory=dict)

    def with_adapter(self, name: str) -> "EngineInfo":
        """Of the model as it is with it."""
        return replace(self, fingerprint=self.adapters[name], adapters={})


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to generate, or one batch of inputs to embed. `payload` as in shared.messages.Job. `adapter`: which
    of EngineInfo.adapters, counted from 1; 0: none."""

    id: str
    kind: Kind
    payload: Mapping[str, Any]
    sampling: SamplingParams
    choice: int = 0
    resume: Resume | None = None
    adapter: int = 0


class Output(Progress, kw_only=True):
    """What one step made for one request. Ends it if `finish_reason` (then with `usage`, and the stop string if one
    ended it) or `error` is set."""

    id: str
    finish_reason: FinishReason | None = None
    stop: str | None = None
    usage: Usage | None = None
    error: TokenbusError | None = None

    @property
    def ends(self) -> bool:
        return self.finish_reason is not None or self.error is not None


Deliver = Callable[[list[Output]], None]


class Engine(Protocol):
    """All methods but `load` are called on the event loop and return at once."""

    def load(self) -> EngineInfo:
        """Load and warm up; blocking, called once, in a thread. Raises StartupError with one clear line."""

    def start(self, deliver: Deliver) -> None:
        """`deliver` is called on the running event loop, once per step, with the outputs of all requests."""

    def submit(self, request: EngineRequest) -> None:
        """Every submitted request is answered by outputs up to one that ends it, unless it is aborted."""

    def abort(self, request_id: str) -> None:
        """Frees what the request holds within a step. Outputs already on their way may still arrive."""

    def accepts(self) -> bool:
        """False while it could begin nothing new; what it has goes on."""

    def stalled_for(self) -> float:
        """Seconds since an engine with work to do last made progress; 0 when idle."""

    def step_ms(self) -> float:
        """What a quick one of the last steps took: how fast it can be, not how loaded it was. 0: not known."""

    def cache(self) -> CacheFigures: ...

    async def stop(self) -> None: ...


class Stepper(Protocol):
    """An engine that computes in blocking steps. `prepare` runs in one thread, the rest in another."""

    def load(self) -> EngineInfo: ...

    def prepare(self, request: EngineRequest) -> Any:
        """Tokenize and check, away from the step thread. An Output is the answer: there is nothing left to step.
        Raises TokenbusError for what the client got wrong."""

    def add(self, prepared: Any) -> None: ...

    def abort(self, request_id: str) -> None:
        """Forget the request, wherever it is; unknown ids are fine."""

    def abort_all(self) -> list[str]:
        """Forget everything and return the ids."""

    def has_work(self) -> bool: ...

    def step(self) -> list[Output]: ...

    def cache(self) -> CacheFigures:
        """Called in any thread."""


_STOP = object()


class SteppedEngine:
    """Runs a Stepper: one thread prepares requests, one steps, the event loop gets one call per step."""

    STEPS_AHEAD = 8  # how far the step thread may run ahead of the event loop

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._commands: queue.SimpleQueue[Callable[[], None] | object] = queue.SimpleQueue()
        self._to_prepare: queue.SimpleQueue[EngineRequest | None] = queue.SimpleQueue()
        self._ahead = threading.Semaphore(self.STEPS_AHEAD)
        self._steps = StepTimes()
        self._aborted: set[str] = set()  # aborted while being prepared; touched by the step thread only
        self._preparing: set[str] = set()  # added to by the event loop, before anything can be said of them
        self._moved_at: float | None = None  # None: idle

    def load(self) -> EngineInfo:
        return self._stepper.load()

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine-step", daemon=True)
        self._thread.start()
        threading.Thread(target=self._prepare_all, name="prepare", daemon=True).start()

    def submit(self, request: EngineRequest) -> None:
        self._preparing.add(request.id)
        self._to_prepare.put(request)

    def abort(self, request_id: str) -> None:
        self._commands.put(partial(self._abort, request_id))

    def accepts(self) -> bool:
        return True

    def stalled_for(self) -> float:
        moved_at = self._moved_at
        return 0.0 if moved_at is None else time.monotonic() - moved_at

    def step_ms(self) -> float:
        return self._steps.quick_ms()

    def cache(self) -> CacheFigures:
        return self._stepper.cache()

    async def stop(self) -> None:
        self._commands.put(_STOP)
        self._ahead.release()  # it may be waiting for a loop that no longer takes steps
        self._to_prepare.put(None)
        await asyncio.to_thread(self._thread.join, 10)

    def _prepare_all(self) -> None:
        while (request := self._to_prepare.get()) is not None:
            self._commands.put(self._prepare(request))

    def _prepare(self, request: EngineRequest) -> Callable[[], None]:
        """What is left to do for the step thread."""
        try:
            return partial(self._add, request.id, self._stepper.prepare(request))
        except TokenbusError as error:
            return partial(self._unprepared, request.id, error)
        except BaseException as error:  # a panic in a tokenizer is no Exception, and this is the only such thread
            log.exception("request %s could not be prepared", request.id)
            failure = EngineFailed(f"The request could not be prepared: {error}")
            return partial(self._unprepared, request.id, failure)

    def _was_aborted(self, request_id: str) -> bool:
        self._preparing.discard(request_id)
        if request_id not in self._aborted:
            return False
        self._aborted.discard(request_id)
        return True

    def _unprepared(self, request_id: str, error: TokenbusError) -> None:
        if not self._was_aborted(request_id):
            self._hand_over([Output(id=request_id, error=error)])

    def _add(self, request_id: str, prepared: Any) -> None:
        if self._was_aborted(request_id):
            return
        if isinstance(prepared, Output):
            self._hand_over([prepared])
        else:
            self._stepper.add(prepared)

    def _abort(self, request_id: str) -> None:
        if request_id in self._preparing:
            self._aborted.add(request_id)
        else:
            self._stepper.abort(request_id)

    def _run(self) -> None:
        while self._obey():
            started = time.monotonic()
            try:
                outputs = self._stepper.step()
            except Exception as error:
                # A step computes many requests at once, so that which one broke it is not known: each may be
                # tried elsewhere, and the gateway counts the crash against them.
                log.exception("engine step failed")
                outputs = [
                    Output(id=request_id, error=EngineFailed(f"The engine failed: {error}"))
                    for request_id in self._stepper.abort_all()
                ]
            else:
                self._steps.add(time.monotonic() - started)
            self._moved_at = time.monotonic()
            if outputs:
                self._hand_over(outputs)

    def _obey(self) -> bool:
        """Carry out what was asked for since the last step; waits while there is nothing to step."""
        while True:
            if not self._stepper.has_work():
                self._moved_at = None
                command = self._commands.get()
                self._moved_at = time.monotonic()
            elif self._commands.empty():
                return True
            else:
                command = self._commands.get()
            if command is _STOP:
                return False
            command()  # type: ignore[operator]

    def _hand_over(self, outputs: list[Output]) -> None:
        self._ahead.acquire()
        try:
            self._loop.call_soon_threadsafe(self._arrive, outputs)
        except RuntimeError:  # the loop is closed: the process is ending
            self._ahead.release()

    def _arrive(self, outputs: list[Output]) -> None:
        self._ahead.release()
        self._deliver(outputs)
