"""What every engine keeps, seen through the public `Engine` alone."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.messages import Resume, SamplingParams, Structured
from tests.engines.driving import Answer
from worker.engines.base import Engine, EngineInfo, EngineRequest, Output
from worker.engines.options import EngineOptions

WORDS = "alpha beta gamma delta epsilon"
LIMIT = 10.0  # seconds for anything to happen


class Client:
    """Submits to a started engine and collects what it delivers."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self.answers: dict[str, Answer] = {}
        self._news = asyncio.Event()

    def deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.answers[output.id].take(output)
        self._news.set()

    def submit(
        self,
        request_id: str,
        payload: dict[str, Any] | None = None,
        kind: Any = "chat",
        resume: Resume | None = None,
        **sampling: Any,
    ) -> Answer:
        payload = {"messages": [{"role": "user", "content": WORDS}]} if payload is None else payload
        params = SamplingParams(**{"seed": 1, "temperature": 0.0, "max_tokens": 12, **sampling})
        answer = self.answers[request_id] = Answer()
        self.engine.submit(EngineRequest(request_id, kind, payload, params, resume=resume))
        return answer

    async def until(self, predicate: Callable[[], bool], description: str) -> None:
        async def wait() -> None:
            while not predicate():
                self._news.clear()
                await self._news.wait()

        try:
            await asyncio.wait_for(wait(), LIMIT)
        except TimeoutError:
            pytest.fail(f"waited in vain: {description}")

    async def answer(self, request_id: str, **options: Any) -> Answer:
        answer = self.submit(request_id, **options)
        await self.until(lambda: answer.ended, f"the end of {request_id}")
        return answer

    async def idle(self) -> None:
        """Work is forgotten within a step; nothing is delivered then, so that this has to look."""
        for _ in range(int(LIMIT / 0.005)):
            if self.engine.stalled_for() == 0.0:
                return
            await asyncio.sleep(0.005)
        pytest.fail("the engine still works")


@pytest.fixture(scope="module", params=["echo", "transformers"])
def loaded(request: pytest.FixtureRequest, llama: Path) -> tuple[str, EngineInfo, Callable[[], Engine]]:
    """Loads each engine once; every test starts it anew."""
    module = importlib.import_module(f"worker.engines.{request.param}_impl")
    options = EngineOptions(model_path=str(llama), device="cpu", threads=1, slots=4, echo_interval_ms=1)
    engine = module.create(options)
    return request.param, engine.load(), lambda: engine


@pytest.fixture
async def client(loaded: tuple[str, EngineInfo, Callable[[], Engine]]) -> AsyncIterator[Client]:
    _, info, make = loaded
    client = Client(make(), info)
    client.engine.start(client.deliver)
    yield client
    await client.engine.stop()


async def test_it_says_what_it_is(client: Client) -> None:
    info = client.info
    assert info.name
    assert info.fingerprint
    assert info.slots == 4
    assert info.max_model_len > 0
    assert info.resumable


async def test_it_streams_and_counts(client: Client) -> None:
    answer = await client.answer("a")
    assert len(answer.texts) > 1
    assert answer.text
    assert len(answer.token_ids) == 12
    assert answer.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens > 0


async def test_equal_requests_have_equal_answers_alone_and_together(client: Client) -> None:
    alone = await client.answer("alone")
    together = [client.submit(f"together {number}") for number in range(10)]
    await client.until(lambda: all(answer.ended for answer in together), "all ten")
    assert all((one.text, one.token_ids) == (alone.text, alone.token_ids) for one in together)


async def test_one_token_may_be_all_that_is_asked_for(client: Client) -> None:
    answer = await client.answer("a", max_tokens=1)
    assert (len(answer.token_ids), answer.finish_reason) == (1, "length")


async def test_a_stop_string_ends_the_text_before_it(client: Client) -> None:
    whole = await client.answer("whole")
    stop = whole.text[6:11]
    answer = await client.answer("stopped", stop=(stop,))
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(answer.token_ids)


async def test_the_stop_string_that_was_met_is_told(client: Client) -> None:
    whole = await client.answer("whole")
    stop = whole.text[6:11]
    assert whole.stop is None
    assert (await client.answer("stopped", stop=("\x00", stop))).stop == stop


@pytest.mark.parametrize("top", [0, 1])
async def test_each_token_has_its_log_probability_where_it_is_asked_for(client: Client, top: int) -> None:
    answer = await client.answer("a", logprobs=top)
    assert len(answer.logprobs) == len(answer.token_ids) == 12
    assert all(one.logprob is not None and one.logprob <= 0 and len(one.top) == top for one in answer.logprobs)
    assert answer.token_ids == (await client.answer("plain")).token_ids


@pytest.mark.parametrize("max_tokens", [0, 4])
async def test_an_echoed_prompt_comes_first_and_once(client: Client, max_tokens: int) -> None:
    request: dict[str, Any] = {"kind": "completion", "payload": {"prompt": WORDS}, "max_tokens": max_tokens}
    plain = await client.answer("plain", **request)
    echoed = await client.answer("echoed", **request, echo=True, logprobs=1)
    assert echoed.text == WORDS + plain.text
    assert (echoed.token_ids, echoed.finish_reason, echoed.counts) == (plain.token_ids, "length", plain.counts)
    assert echoed.usage is not None
    assert len(echoed.prompt_logprobs) == echoed.usage.prompt_tokens
    assert echoed.prompt_logprobs[0].logprob is None
    for tokens in range(1, max_tokens + 1):
        ids, text = echoed.token_ids[:tokens], "".join(echoed.texts[:tokens])
        rest = await client.answer(f"from {tokens}", **request, echo=True, logprobs=1, resume=Resume(ids, len(text)))
        assert (text + rest.text, rest.prompt_logprobs) == (echoed.text, [])


async def test_min_tokens_and_ignore_eos_are_kept(client: Client) -> None:
    answer = await client.answer("a", max_tokens=9, min_tokens=9, ignore_eos=True)
    assert (len(answer.token_ids), answer.finish_reason) == (9, "length")


async def test_no_tokens_asked_for_none_made(client: Client) -> None:
    answer = await client.answer("a", max_tokens=0)
    assert (answer.token_ids, answer.text, answer.finish_reason) == ([], "", "length")


ASKED: dict[str, dict[str, Any]] = {
    "logit_bias": {"logit_bias": {70: 1.0}},
    "stop_token_ids": {"stop_token_ids": (70,)},
    "structured_outputs": {"structured": Structured("choice", ["yes", "no"])},
}


@pytest.mark.parametrize("param", ASKED)
async def test_what_an_engine_has_not_it_refuses_by_name(client: Client, param: str) -> None:
    answer = await client.answer("a", **ASKED[param])
    if client.info.name == "echo":
        assert answer.error is not None
        assert (answer.error.code, answer.error.param) == ("unsupported_parameter", param)
    else:
        assert answer.finish_reason is not None


async def test_a_bad_grammar_is_told_so_and_hurts_no_good_one_beside_it(client: Client) -> None:
    if client.info.name == "echo":
        pytest.skip("it has no grammars")
    good = client.submit("good", structured=Structured("regex", "[a-z]{5}"))
    bad = await client.answer("bad", structured=Structured("regex", "(a"))
    await client.until(lambda: good.ended, "the good one's end")
    assert bad.error is not None
    assert (bad.error.code, bad.error.retryable) == ("invalid_value", False)
    assert (len(good.text), good.finish_reason) == (5, "stop")


async def test_a_cancelled_request_leaves_nothing_running(client: Client) -> None:
    answer = client.submit("a", max_tokens=200)
    await client.until(lambda: len(answer.token_ids) > 2, "a few tokens")
    client.engine.abort("a")
    await client.idle()
    tokens = len(answer.token_ids)
    assert (await client.answer("b")).finish_reason == "length"
    assert len(answer.token_ids) <= tokens < 200
    assert not answer.ended


async def test_a_request_that_is_cancelled_while_it_is_prepared_is_not_answered(client: Client) -> None:
    answer = client.submit("a", max_tokens=200)
    client.engine.abort("a")
    await client.answer("b")
    await client.idle()
    assert not answer.ended


async def test_cancelling_what_is_unknown_does_nothing(client: Client) -> None:
    client.engine.abort("never seen")
    assert (await client.answer("a")).finish_reason == "length"


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        ("chat", {"messages": [{"role": "user", "content": "many words " * 20_000}]}, "context_length_exceeded"),
        ("embedding", {"inputs": ["text"]}, "unsupported_model"),
    ],
)
async def test_a_bad_request_is_told_so_and_hurts_no_neighbour(
    client: Client, kind: str, payload: dict[str, Any], code: str
) -> None:
    expected = await client.answer("expected")
    neighbour = client.submit("neighbour")
    bad = await client.answer("bad", kind=kind, payload=payload)
    await client.until(lambda: neighbour.ended, "the neighbour's end")
    assert bad.error is not None
    assert (bad.error.code, bad.error.retryable) == (code, False)
    assert neighbour.text == expected.text


@pytest.mark.parametrize("stop", [(), ("{middle}",)])
async def test_resumed_anywhere_it_equals_the_undisturbed(client: Client, stop: tuple[str, ...]) -> None:
    if stop:
        stop = ((await client.answer("plain")).text[9:16],)
    whole = await client.answer("whole", stop=stop)
    for tokens in range(len(whole.token_ids) + 1):
        ids, text = whole.token_ids[:tokens], "".join(whole.texts[:tokens])
        rest = await client.answer(f"from {tokens}", stop=stop, resume=Resume(ids, len(text)))
        assert (ids + rest.token_ids, text + rest.text) == (whole.token_ids, whole.text)
        assert (rest.finish_reason, rest.counts) == (whole.finish_reason, whole.counts)


async def test_it_is_idle_before_and_after(client: Client) -> None:
    assert client.engine.stalled_for() == 0.0
    await client.answer("a")
    await client.idle()


async def test_it_stops_in_the_middle_of_its_work(client: Client) -> None:
    answer = client.submit("a", max_tokens=200)
    await client.until(lambda: len(answer.token_ids) > 2, "a few tokens")
    await asyncio.wait_for(client.engine.stop(), LIMIT)
    assert not answer.ended
