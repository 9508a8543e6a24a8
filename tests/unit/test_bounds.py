"""What one request may make everybody carry."""

import difflib
from contextlib import nullcontext
from typing import Any

import pytest

from gateway.front import Front
from registry import directory
from shared.errors import ContextLengthExceeded
from shared.messages import Failed, Job, SamplingParams, Usage
from shared.queue import Entry
from worker.engines.base import EngineRequest, Output
from worker.engines.echo_impl import EchoStepper
from worker.engines.options import EngineOptions
from worker.running import LARGEST_RESULT, RunningJob

JOB = Job(
    id="j",
    request="r",
    model="m",
    kind="tokenize",
    payload={},
    sampling=SamplingParams(seed=0),
    gateway="g",
    deadline=0,
)


@pytest.mark.parametrize(("size", "fits"), [(LARGEST_RESULT // 2, True), (LARGEST_RESULT, False)])
def test_a_result_that_would_cost_its_gateway_the_subscription_is_not_published(size: int, fits: bool) -> None:
    running = RunningJob(JOB, Entry("s", "1-0"), "w")
    running.add(Output(id="j#0", result={"prompt": "x" * size}, finish_reason="stop", usage=Usage(1, 0)))
    events = running.take_events()
    assert running.ended
    assert isinstance(events[-1], Failed) is not fits
    if not fits:
        assert isinstance(events[-1], Failed)
        assert (events[-1].code, events[-1].retryable) == ("invalid_value", False)
        assert not any(getattr(event, "result", None) for event in events)


def test_a_name_of_megabytes_is_not_compared_with_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert directory.nearest("ecko", ["echo"]) == "echo"
    monkeypatch.setattr(difflib, "get_close_matches", lambda *_, **__: pytest.fail("compared"))
    assert directory.nearest("m" * 1_000_000, ["echo"]) is None


class Seen:
    """An application that remembers what was asked."""

    asked: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked = scope["state"]["asked"]


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(("given", "kept"), [(TRACE, TRACE), ("x" * 60_000, None), (TRACE.upper(), None), ("", None)])
async def test_only_a_sound_traceparent_goes_with_the_job(given: str, kept: str | None) -> None:
    """It is written into each of up to 2048 jobs."""
    seen = Seen()
    front = Front(seen, {"/x": seen}, api_keys=[], allowed_origins=[])
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"traceparent", given.encode())], "state": {}}
    await front(scope, None, None)  # type: ignore[arg-type]
    assert seen.asked.traceparent == kept


def test_no_prompt_of_the_echo_engine_is_megabytes_long() -> None:
    stepper = EchoStepper(EngineOptions())
    info = stepper.load()
    for chars, fits in ((128 * info.max_model_len, True), (128 * info.max_model_len + 1, False)):
        payload = {"messages": [{"role": "user", "content": "x" * chars}]}
        request = EngineRequest("e", "chat", payload, SamplingParams(seed=0, max_tokens=4))
        with nullcontext() if fits else pytest.raises(ContextLengthExceeded):
            stepper.prepare(request)
