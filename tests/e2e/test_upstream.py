"""A worker that passes requests on to another server: here a gateway of our own, and one that misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, OpenAI

from tests.conftest import free_port, wait_until
from tests.e2e.conftest import EMBEDDINGS, embedding_weights, sdk, started
from tests.e2e.scripted_worker import CALLS
from tests.e2e.wire import Connection, chat, stream
from tests.fault.streams import rows, used
from tests.processes import Stack

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SAID = [{"role": "user", "content": "one two three"}]
ABOVE, BELOW = ("--namespace", "above"), ("--namespace", "below")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Stack]]:
    """A stack, and one before it that passes everything on; one Redis serves both, under two names."""

    async def start(upstream: Stack) -> None:
        await upstream.gateway(*ABOVE, TOKENBUS_API_KEYS="sk-above")
        await upstream.worker(*ABOVE, "--model-names", "echo", "--echo-interval-ms", "10")
        await upstream.worker(*ABOVE, "--model-names", "scripted", module="tests.e2e.scripted_worker")
        await upstream.worker(*ABOVE, "--model-path", embedding_weights(), "--model-names", EMBEDDINGS)
        await upstream.models("echo", "scripted", EMBEDDINGS, key="sk-above")

    with started(tmp_path_factory, start) as upstream:
        front = Stack(upstream.redis_url, tmp_path_factory.mktemp("front"))

        async def start_front() -> None:
            await front.gateway(*BELOW)
            for name in ("echo", "scripted", EMBEDDINGS):
                flags = ("--upstream-url", f"{upstream.url}/v1/", "--upstream-model", name)
                await front.worker("--engine", "openai", *BELOW, *flags, TOKENBUS_UPSTREAM_API_KEY="sk-above")
            await front.models("echo", "scripted", EMBEDDINGS)

        try:
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                runner.run(start_front())
            yield upstream, front
        finally:
            front.close()


@pytest.fixture
def clients(pair: tuple[Stack, Stack]) -> Iterator[tuple[OpenAI, OpenAI]]:
    """Of the upstream, and of what passes on to it."""
    above, front = pair
    with (
        OpenAI(base_url=f"{above.url}/v1", api_key="sk-above", max_retries=0) as there,
        OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as here,
    ):
        yield there, here


ASKED: dict[str, dict[str, Any]] = {
    "plain": {"model": "echo", "messages": SAID, "max_tokens": 7},
    "stopped": {"model": "echo", "messages": SAID, "max_tokens": 7, "stop": ["three"]},
    "scored": {"model": "echo", "messages": SAID, "max_tokens": 4, "logprobs": True, "top_logprobs": 1},
    "choices": {"model": "echo", "messages": SAID, "max_tokens": 4, "n": 2, "seed": 3},
    "calls": {
        "model": "scripted",
        "messages": [{"role": "user", "content": json.dumps(CALLS)}],
        "tools": [WEATHER],
        "tool_choice": "required",
    },
}
NOISE = {"id", "created", "system_fingerprint"}


def told(answer: Any) -> Any:
    """Without what no two answers have in common."""
    if isinstance(answer, dict):
        return {key: told(value) for key, value in answer.items() if key not in NOISE}
    return [told(one) for one in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("how", ASKED)
def test_a_chat_is_answered_as_by_the_upstream(clients: tuple[OpenAI, OpenAI], how: str) -> None:
    there, here = (told(client.chat.completions.create(**ASKED[how]).model_dump()) for client in clients)
    assert here == there


@pytest.mark.parametrize("how", ASKED)
def test_a_stream_is_the_whole_answer(clients: tuple[OpenAI, OpenAI], how: str) -> None:
    whole = clients[1].chat.completions.create(**ASKED[how])
    chunks = list(clients[1].chat.completions.create(**ASKED[how], stream=True, stream_options={"include_usage": True}))
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == 0]
    message = whole.choices[0].message
    assert "".join(choice.delta.content or "" for choice in choices) == (message.content or "")
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    said = "".join(call.function.arguments or "" for call in calls if call.function)
    assert said == "".join(call.function.arguments for call in message.tool_calls or [])  # type: ignore[union-attr]
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_completion_and_its_logprobs(clients: tuple[OpenAI, OpenAI], logprobs: int | None) -> None:
    asked: dict[str, Any] = {"model": "echo", "prompt": "one two", "max_tokens": 5, "logprobs": logprobs}
    there, here = (told(client.completions.create(**asked).model_dump()) for client in clients)
    assert here == there


def test_embeddings(clients: tuple[OpenAI, OpenAI]) -> None:
    there, here = (client.embeddings.create(model=EMBEDDINGS, input=["one", "two words"]) for client in clients)
    assert [row.embedding for row in here.data] == [row.embedding for row in there.data]
    assert here.usage == there.usage


def test_what_the_client_got_wrong_is_told_in_the_upstream_s_words(clients: tuple[OpenAI, OpenAI]) -> None:
    asked: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "word " * 9000}]}
    errors = []
    for client in clients:
        with pytest.raises(APIStatusError) as caught:
            client.chat.completions.create(**asked)
        errors.append((caught.value.status_code, caught.value.body))
    assert errors[0] == errors[1]
    assert errors[0][1]["code"] == "context_length_exceeded"  # type: ignore[index]


async def test_who_goes_leaves_nothing_running_above(pair: tuple[Stack, Stack]) -> None:
    above, front = pair
    connection = await Connection.open(front)
    await connection.send(chat("a b", max_tokens=100_000, stream=True))
    spaced = Stack(above.redis_url, above._folder)
    spaced.namespace = "above"
    await wait_until(lambda: used(spaced, 1), description="the upstream computes")
    connection.reset()
    await wait_until(lambda: used(spaced, 0), description="the upstream computes no more")


# -- an upstream that misbehaves ---------------------------------------------------------------------------------------

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Upstream:
    """Answers with what it is told to, one answer after the other; the last again and again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.port = free_port()
        self.is_up = True

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Upstream"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
        await reader.readexactly(int(lengths[0]) if lengths else 0)
        if b"GET" in head.partition(b"\r\n")[0]:
            writer.write(answer(200, b'{"data": [{"id": "m"}]}') if self.is_up else answer(503))
        else:
            self.asked += 1
            writer.write(self.answers[0])
            if len(self.answers) > 1:
                self.answers.pop(0)
        await writer.drain()
        writer.close()


def answer(status: int, body: bytes = b'{"error": {"message": "no"}}', *heads: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close", *heads, "", ""]
    return "\r\n".join(lines).encode() + body


def event(text: str, reason: str | None = None) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


GOOD = answer(200, event("fine") + event("", "stop") + b"data: [DONE]\n\n")
HALF = answer(200, event("half"))


@asynccontextmanager
async def passed_on(stack: Stack, upstream: Upstream) -> AsyncIterator[AsyncOpenAI]:
    async with upstream.serving():
        await stack.gateway()
        url = f"http://127.0.0.1:{upstream.port}/v1"
        await stack.worker("--engine", "openai", "--upstream-url", url, "--model-names", "echo")
        await stack.models("echo")
        async with sdk(stack) as client:
            yield client


async def ask(client: AsyncOpenAI) -> str | None:
    reply = await client.chat.completions.create(model="echo", messages=SAID)  # type: ignore[arg-type]
    return reply.choices[0].message.content


@pytest.mark.parametrize(
    ("answers", "asked"),
    [([answer(500), answer(503), GOOD], 3), ([answer(429, b"{}", "retry-after: 0.1"), GOOD], 2), ([GOOD], 1)],
    ids=["it fails twice", "it is busy once", "it is well"],
)
async def test_what_passes_is_tried_again(stack: Stack, answers: list[bytes], asked: int) -> None:
    upstream = Upstream(*answers)
    async with passed_on(stack, upstream) as client:
        assert await ask(client) == "fine"
    assert upstream.asked == asked


@pytest.mark.parametrize(
    ("given", "status", "code", "asked"),
    [
        (answer(429, b"{}", "retry-after: 0"), 429, "upstream_busy", 3),
        (answer(429, b"{}", "retry-after: nan"), 429, "upstream_busy", 3),
        (answer(401), 502, "upstream_error", 1),
        (answer(402, b'{"error": {"message": "sk-acme has no money"}}'), 502, "upstream_error", 1),
        (answer(307, b"", "location: /elsewhere"), 502, "upstream_error", 1),
        (answer(404), 502, "upstream_error", 1),
        (answer(400, b'{"error": {"message": "bad top_p", "param": "top_p"}}'), 400, "invalid_value", 1),
        (answer(422, b'{"detail": "so"}'), 400, "invalid_value", 1),
        (answer(200, b"data: nonsense\n\n"), 502, "upstream_error", 1),
        (answer(200, rb'data: {"choices": [{"delta": {"content": "\ud83d"}}]}'), 502, "upstream_error", 1),
        (answer(200, b"data: " + b"x" * 17 * 2**20), 502, "upstream_error", 1),
        (answer(200, b'{"choices": []}', "content-type: application/json"), 502, "upstream_error", 1),
        (answer(200, b'{"choices": []}'), 502, "upstream_error", 1),
    ],
    ids=[
        *(
            "busy",
            "for no time",
            "our key",
            "our bill",
            "elsewhere",
            "no such model",
            "a bad request",
            "no error object",
        ),
        *("nonsense", "half a character", "a line without end", "no stream", "a whole answer"),
    ],
)
async def test_what_does_not_pass_is_told_once(stack: Stack, given: bytes, status: int, code: str, asked: int) -> None:
    upstream = Upstream(given)
    async with passed_on(stack, upstream) as client:
        with pytest.raises(APIStatusError) as caught:
            await ask(client)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert "sk-" not in str(caught.value)
    assert upstream.asked == asked


async def test_a_reply_that_breaks_off_ends_with_an_error_and_nothing_is_said_twice(stack: Stack) -> None:
    upstream = Upstream(HALF)
    async with passed_on(stack, upstream):
        streamed = await stream(stack, chat("a b"))
    assert streamed.text() == "half"
    assert streamed.error is not None
    assert streamed.error["code"] == "engine_error"
    assert upstream.asked == 1


async def test_nothing_is_sent_to_an_upstream_that_is_down_until_it_is_back(stack: Stack) -> None:
    upstream = Upstream(answer(503))
    async with passed_on(stack, upstream) as client:
        upstream.is_up = False
        waiting = [asyncio.create_task(ask(client)) for _ in range(3)]
        await wait_until(lambda: "nothing more is sent" in stack._processes[1].said(), description="it is noticed")
        before = upstream.asked
        late = asyncio.create_task(ask(client))
        await asyncio.sleep(1.5)
        assert upstream.asked - before <= 3 * len(waiting)  # of those that were under way
        assert not late.done()
        upstream.answers, upstream.is_up = [GOOD], True
        assert await asyncio.gather(*waiting, late) == ["fine"] * 4


async def test_it_waits_for_an_upstream_that_starts_later(stack: Stack) -> None:
    upstream = Upstream(GOOD)
    await stack.gateway()
    url = f"http://127.0.0.1:{upstream.port}/v1"
    worker = stack.spawn("worker", "--engine", "openai", "--upstream-url", url, "--model-names", "echo")
    await wait_until(lambda: "waiting for" in worker.said(), description="it waits")
    async with upstream.serving():
        await rows(stack, 1)
        async with sdk(stack) as client:
            assert await ask(client) == "fine"
