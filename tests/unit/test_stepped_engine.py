"""The threads that drive a Stepper: whatever one request does to them, the others are answered."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.messages import SamplingParams, Usage
from tests.conftest import wait_until
from worker.engines.base import EngineInfo, EngineRequest, Output, SteppedEngine
from worker.engines.figures import CacheFigures, StepTimes


class Panic(BaseException):
    """As a native library raises it: no Exception."""


class OneStep:
    """Ends every request in its first step, which takes `step_s`."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self.open: list[str] = []
        self.hold = threading.Event()

    def load(self) -> EngineInfo:
        return EngineInfo("one step", "f", 10, 1, resumable=False)

    def prepare(self, request: EngineRequest) -> str:
        if request.id == "panic":
            raise Panic("in the tokenizer")
        if request.id == "slow":
            self.hold.wait(20)
        return request.id

    def add(self, prepared: Any) -> None:
        self.open.append(prepared)

    def abort(self, request_id: str) -> None:
        self.open = [id for id in self.open if id != request_id]

    def abort_all(self) -> list[str]:
        ids, self.open = self.open, []
        return ids

    def has_work(self) -> bool:
        return bool(self.open)

    def cache(self) -> CacheFigures:
        return CacheFigures()

    def step(self) -> list[Output]:
        time.sleep(self.step_s)
        if "bad" in self.open:
            raise RuntimeError("in a kernel")
        return [Output(id=id, finish_reason="stop", usage=Usage(1, 0)) for id in self.abort_all()]


class Driven:
    def __init__(self) -> None:
        self.stepper = OneStep()
        self.engine = SteppedEngine(self.stepper)
        self.answers: dict[str, Output] = {}
        self.engine.start(self._take)

    def _take(self, outputs: list[Output]) -> None:
        self.answers |= {output.id: output for output in outputs}

    def submit(self, id: str) -> None:
        self.engine.submit(EngineRequest(id, "chat", {}, SamplingParams(seed=1)))

    async def answer(self, id: str) -> Output:
        await wait_until(lambda: id in self.answers, description=f"{id} is answered")
        return self.answers[id]


@pytest.fixture
async def driven() -> AsyncIterator[Driven]:
    driven = Driven()
    yield driven
    driven.stepper.hold.set()
    await driven.engine.stop()


async def test_a_panic_while_preparing_fails_that_request_only(driven: Driven) -> None:
    driven.submit("panic")
    driven.submit("next")
    failed = (await driven.answer("panic")).error
    assert failed is not None
    assert failed.retryable
    assert (await driven.answer("next")).finish_reason == "stop"


async def test_what_is_prepared_does_not_wait_for_the_next(driven: Driven) -> None:
    driven.submit("quick")
    driven.submit("slow")
    assert (await driven.answer("quick")).finish_reason == "stop"
    assert "slow" not in driven.answers
    driven.stepper.hold.set()
    await driven.answer("slow")


async def test_its_step_is_a_quick_one_of_the_last_and_is_forgotten(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert driven.engine.step_ms() == 0
    for number, driven.stepper.step_s in enumerate([0.3] + [0.02] * 5):  # a cold one, a pause: they do not count
        driven.submit(f"r-{number}")
        await driven.answer(f"r-{number}")
        await asyncio.sleep(0.03)  # idle, which is no step
    assert 20 <= driven.engine.step_ms() < 200
    monkeypatch.setattr(StepTimes, "FORGOTTEN_S", 0.0)
    assert driven.engine.step_ms() == 0


async def test_a_step_that_fails_fails_what_is_in_it_and_says_nothing_of_speed(driven: Driven) -> None:
    driven.submit("bad")
    failed = (await driven.answer("bad")).error
    assert failed is not None
    assert failed.retryable
    assert driven.engine.step_ms() == 0
    driven.submit("next")
    assert (await driven.answer("next")).finish_reason == "stop"
    assert driven.engine.step_ms() > 0
