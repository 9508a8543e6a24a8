"""What every engine keeps, seen through the public `Engine` alone."""

import asyncio
import importlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.messages import Resume, SamplingParams, Structured
from tests.e2e.conftest import started as started_stack
from tests.engines.driving import Answer
from tests.processes import Stack
from worker.engines.base import Engine, EngineInfo, EngineRequest, Output
from worker.engines.options import EngineOptions

WORDS = "alpha beta gamma delta epsilon"
LIMIT = 120.0  # s for anything to happen: vLLM's first log probabilities compile something, 2 s alone, 30 beside others
LONG = 3500  # tokens: more than are made while somebody looks

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Client:
    """Submits to a started engine and collects what it delivers."""

    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self.answers: dict[str, Answer] = {}
        self.is_stopped = False
        self._test = 0
        self._news = asyncio.Event()

    def begin(self) -> None:
        """A test, whose requests have names that no other one gave."""
        self._test += 1
        self.answers.clear()

    def _name(self, request_id: str) -> str:
        return f"{self._test}: {request_id}"

    def abort(self, request_id: str) -> None:
        self.engine.abort(self._name(request_id))

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
        adapter: int = 0,
        **sampling: Any,
    ) -> Answer:
        payload = {"messages": [{"role": "user", "content": WORDS}]} if payload is None else payload
        params = SamplingParams(**{"seed": 1, "temperature": 0.0, "max_tokens": 12, **sampling})
        name = self._name(request_id)
        answer = self.answers[name] = Answer()
        self.engine.submit(EngineRequest(name, kind, payload, params, resume=resume, adapter=adapter))
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

    def has_made(self, answer: Answer, tokens: int) -> bool:
        """Counted by all that is told of them."""
        ids = tokens if self.info.resumable else 0
        return answer.usage is not None and (answer.usage.completion_tokens, len(answer.token_ids)) == (tokens, ids)

    def not_for(self, **engines: str) -> None:
        """Skips what an engine does not have, and says why."""
        if (why := engines.get(self.info.name)) is not None:
            pytest.skip(why)

    async def idle(self) -> None:
        """Work is forgotten within a step; nothing is delivered then, so that this has to look."""
        for _ in range(int(LIMIT / 0.005)):
            if self.engine.stalled_for() == 0.0:
                return
            await asyncio.sleep(0.005)
        pytest.fail("the engine still works")


Loaded = tuple[EngineInfo, Engine]
ENGINES = "echo,transformers,llamacpp,openai"
OPTIONS: dict[str, Any] = {"device": "cpu", "threads": 1, "slots": 4, "echo_interval_ms": 1, "dtype": "float32"}
OF_LLAMA_CPP: dict[str, Any] = {"dtype": None}
OF_VLLM: dict[str, Any] = {"device": None, "enforce_eager": True}


@pytest.fixture(scope="module", params=os.environ.get("TESTED_ENGINES", ENGINES).split(","))
def loaded(request: pytest.FixtureRequest, llama: Path, llama_for_vllm: Path, llama_gguf: Path) -> Iterator[Loaded]:
    """Loads each engine once."""
    models = {"vllm": (llama_for_vllm, OF_VLLM), "llamacpp": (llama_gguf, OF_LLAMA_CPP)}
    path, options = models.get(request.param, (llama, {}))
    with ExitStack() as held:
        if request.param == "openai":
            folders = request.getfixturevalue("tmp_path_factory")
            upstream = held.enter_context(started_stack(folders, partial(start_upstream, path)))
            options = {"upstream_url": f"{upstream.url}/v1", "upstream_model": "m"}
        module = importlib.import_module(f"worker.engines.{request.param}_impl")
        engine = module.create(EngineOptions(model_path=str(path), **{**OPTIONS, **options}))
        yield engine.load(), engine


async def start_upstream(path: Path, stack: Stack) -> None:
    await stack.gateway()
    await stack.worker("--model-path", str(path), "--model-names", "m", "--dtype", "float32", "--threads", "1")
    await stack.models("m")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(loaded: Loaded) -> AsyncIterator[Client]:
    info, engine = loaded
    client = Client(engine, info)
    engine.start(client.deliver)
    yield client
    if not client.is_stopped:
        await engine.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(started: Client) -> AsyncIterator[Client]:
    started.begin()
    yield started
    if not started.is_stopped:
        for name, answer in started.answers.items():
            if not answer.ended:
                started.engine.abort(name)
        await started.idle()


async def test_it_says_what_it_is(client: Client) -> None:
    info = client.info
    assert info.name
    assert info.fingerprint
    assert info.slots == 4
    assert info.max_model_len > 0
    assert info.resumable is (info.name != "openai")  # a protocol without token ids


async def test_it_streams_and_counts(client: Client) -> None:
    answer = await client.answer("a")
    assert len(answer.texts) > 1
    assert answer.text
    assert client.has_made(answer, 12)
    assert answer.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0


async def test_equal_requests_have_equal_answers_alone_and_together(client: Client) -> None:
    alone = await client.answer("alone")
    together = [client.submit(f"together {number}") for number in range(10)]
    await client.until(lambda: all(answer.ended for answer in together), "all ten")
    assert all((one.text, one.token_ids) == (alone.text, alone.token_ids) for one in together)


async def test_one_token_may_be_all_that_is_asked_for(client: Client) -> None:
    answer = await client.answer("a", max_tokens=1)
    assert client.has_made(answer, 1)
    assert answer.finish_reason == "length"


async def test_a_stop_string_ends_the_text_before_it(client: Client) -> None:
    whole = await client.answer("whole")
    stop = whole.text[6:11]
    answer = await client.answer("stopped", stop=(stop,))
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    assert answer.usage is not None
    assert client.has_made(answer, answer.usage.completion_tokens)
    assert 0 < answer.usage.completion_tokens < 12


async def test_the_stop_string_that_was_met_is_told(client: Client) -> None:
    client.not_for(openai="the protocol does not tell which one it was")
    whole = await client.answer("whole")
    stop = whole.text[6:11]
    assert whole.stop is None
    assert (await client.answer("stopped", stop=("\x00", stop))).stop == stop


@pytest.mark.parametrize("top", [0, 1])
async def test_each_token_has_its_log_probability_where_it_is_asked_for(client: Client, top: int) -> None:
    answer = await client.answer("a", logprobs=top)
    assert len(answer.logprobs) == 12
    assert client.has_made(answer, 12)
    assert all(one.logprob is not None and one.logprob <= 0 and len(one.top) == top for one in answer.logprobs)
    plain = await client.answer("plain")
    assert (answer.text, answer.token_ids) == (plain.text, plain.token_ids)


@pytest.mark.parametrize("max_tokens", [0, 4])
async def test_an_echoed_prompt_comes_first_and_once(client: Client, max_tokens: int) -> None:
    client.not_for(llamacpp="llama-server does not tell the logprobs of a prompt", openai="nor do all upstreams")
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
    assert client.has_made(answer, 9)
    assert answer.finish_reason == "length"


async def test_no_tokens_asked_for_none_made(client: Client) -> None:
    client.not_for(openai="the protocol has no reply of no tokens")
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
    client.not_for(echo="it has no grammars")
    good = client.submit("good", structured=Structured("regex", "[a-z]{5}"))
    bad = await client.answer("bad", structured=Structured("regex", "(a"))
    await client.until(lambda: good.ended, "the good one's end")
    assert bad.error is not None
    assert (bad.error.code, bad.error.retryable) == ("invalid_value", False)
    assert (len(good.text), good.finish_reason) == (5, "stop")


async def test_a_cancelled_request_leaves_nothing_running(client: Client) -> None:
    answer = client.submit("a", max_tokens=LONG)
    await client.until(lambda: len(answer.texts) > 2, "a few tokens")
    client.abort("a")
    await client.idle()
    told = len(answer.texts)
    assert (await client.answer("b")).finish_reason == "length"
    assert len(answer.texts) <= told < LONG
    assert not answer.ended


async def test_a_request_that_is_cancelled_while_it_is_prepared_is_not_answered(client: Client) -> None:
    answer = client.submit("a", max_tokens=LONG)
    client.abort("a")
    await client.answer("b")
    await client.idle()
    assert not answer.ended


async def test_cancelling_what_is_unknown_does_nothing(client: Client) -> None:
    client.abort("never seen")
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


SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {},
    "stopped": {},  # within the text that "plain" has
    "constrained": {"structured": Structured("regex", "([a-z]{3} [0-9]){4}"), "max_tokens": 40},
    "penalized": {"presence_penalty": 0.7, "frequency_penalty": 1.5, "repetition_penalty": 1.1, "max_tokens": 24},
}


@pytest.mark.parametrize("how", SAMPLING)
async def test_resumed_anywhere_it_equals_the_undisturbed(client: Client, how: str) -> None:
    client.not_for(openai="without token ids nobody can go on from them")
    sampling = SAMPLING[how]
    if how == "stopped":
        sampling = {"stop": ((await client.answer("plain")).text[9:16],)}
    elif sampling:
        client.not_for(echo="it draws nothing")
    whole = await client.answer("whole", **sampling)
    for tokens in range(len(whole.token_ids) + 1):
        ids, text = whole.token_ids[:tokens], "".join(whole.texts[:tokens])
        rest = await client.answer(f"from {tokens}", **sampling, resume=Resume(ids, len(text)))
        assert (ids + rest.token_ids, text + rest.text) == (whole.token_ids, whole.text)
        assert (rest.finish_reason, rest.counts) == (whole.finish_reason, whole.counts)


async def test_penalties_change_what_is_said(client: Client) -> None:
    client.not_for(echo="it draws nothing")
    plain, penalized = await client.answer("plain", max_tokens=24), await client.answer("p", **SAMPLING["penalized"])
    assert penalized.text != plain.text
    if client.info.resumable:
        assert len(set(penalized.token_ids)) > len(set(plain.token_ids))


SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 6}, "word": {"enum": ["größer", 7]}},
    "required": ["text", "word"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", [1, 2])
async def test_json_is_what_its_schema_allows(client: Client, seed: int) -> None:
    client.not_for(echo="it has no grammars")
    schema = Structured("json", SCHEMA)
    answer = await client.answer("a", structured=schema, max_tokens=200, temperature=1.0, seed=seed, seeded=True)
    assert answer.error is None
    made = json.loads(answer.text)
    assert list(made) == ["text", "word"]
    assert len(made["text"]) <= 6
    assert made["word"] in ("größer", 7)


async def test_a_grammar_may_ask_for_special_tokens(client: Client) -> None:
    client.not_for(echo="it has no grammars")
    grammar = Structured("grammar", 'start: "the" <|begin|> "dog"')
    answer = await client.answer("a", structured=grammar)
    assert answer.finish_reason == "stop"
    assert 0 in answer.token_ids or not client.info.resumable
    assert answer.text == "thedog"


async def test_a_seed_repeats_and_another_differs(client: Client) -> None:
    client.not_for(echo="it draws nothing")
    drawn = {"temperature": 1.0, "ignore_eos": True}
    first, again, other = [await client.answer(f"seed {seed}", seed=seed, **drawn) for seed in (3, 3, 4)]
    assert first.text == again.text != other.text
    assert first.token_ids == again.token_ids


async def test_text_is_the_same_after_it_was_tokenized(client: Client) -> None:
    client.not_for(echo="it has no tokenizer", openai="the protocol has none")
    text = "Zwölf Boxkämpfer, 12  of them:\n\tjump 👩‍🚀"
    tokens = await client.answer("there", kind="tokenize", payload={"prompt": text, "add_special_tokens": False})
    assert tokens.result is not None
    back = await client.answer("back", kind="detokenize", payload={"tokens": tokens.result["tokens"]})
    assert back.result == {"prompt": text}


async def test_a_prompt_is_what_the_chat_template_makes_of_the_messages(client: Client) -> None:
    client.not_for(echo="it has no chat template", openai="it is the upstream's")
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": WORDS}]}
    told = await client.answer("told", kind="tokenize", payload=chat)
    assert told.result is not None
    text = await client.answer("text", kind="detokenize", payload={"tokens": told.result["tokens"]})
    assert text.result == {"prompt": f"<|begin|>user\n{WORDS}<|end|>\n<|begin|>assistant\n"}
    by_ids = await client.answer("ids", kind="completion", payload={"prompt": told.result["tokens"]})
    answer = await client.answer("chat", payload=chat)
    assert (answer.token_ids, answer.counts) == (by_ids.token_ids, by_ids.counts)


async def test_it_is_idle_before_and_after(client: Client) -> None:
    assert client.engine.stalled_for() == 0.0
    await client.answer("a")
    await client.idle()


async def test_it_stops_in_the_middle_of_its_work(client: Client) -> None:
    """The last: nothing runs after it."""
    answer = client.submit("a", max_tokens=LONG)
    await client.until(lambda: len(answer.texts) > 2, "a few tokens")
    client.is_stopped = True
    await asyncio.wait_for(client.engine.stop(), LIMIT)
    assert not answer.ended
