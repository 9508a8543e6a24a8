"""What a client gets for its answer, message by message."""

import asyncio
from typing import Any, cast

import pytest

from gateway import replies
from gateway.chat_completions import ChatChunks, ChatReply
from gateway.client import Client
from gateway.generate import Answer
from gateway.hub import Hub
from gateway.replies import Reply, StreamReply
from shared.errors import WorkerLost
from shared.messages import Job, Progress, SamplingParams, Usage
from tests.conftest import wait_until


class Cancelled:
    """In the place of the hub: it only hears what is given up."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def cancel(self, jobs: Any, why: str = "") -> None:
        self.jobs += jobs


class Sent:
    """The client's end: what was sent to it, while a reply is being written."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.hub = Cancelled()
        job = Job(
            id="x-0",
            request="x",
            model="m",
            kind="chat",
            payload={},
            sampling=SamplingParams(seed=1),
            gateway="g",
            deadline=1,
        )
        self.answer = Answer(cast(Hub, self.hub), "x", "m", [job], 1)
        self.client = Client()

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    def writing(self, reply: Reply) -> "asyncio.Task[None]":
        return asyncio.create_task(reply.write(self.send, self.client), name="reply")


@pytest.fixture
async def sent() -> Sent:
    return Sent()


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def a_stream(sent: Sent) -> StreamReply:
    return StreamReply(sent.answer, ChatChunks, include_usage=False)


async def test_an_error_in_mid_stream_repeats_nothing(sent: Sent) -> None:
    writing = sent.writing(a_stream(sent))
    for word in ("one", "two"):
        sent.answer.mailbox.add(0, Progress(text=word))
        await turn()
    sent.answer.mailbox.fail(WorkerLost("lost"))
    await writing
    assert [sent.body.count(word) for word in (b"assistant", b"one", b"two", b'"error"', b"[DONE]")] == [1, 1, 1, 1, 0]
    assert sent.hub.jobs == ["x-0"]


async def test_the_end_comes_with_the_last_text_in_one_message(sent: Sent) -> None:
    writing = sent.writing(a_stream(sent))
    sent.answer.mailbox.add(0, Progress(text="all"))
    sent.answer.mailbox.finish(0, "stop", Usage(1, 1))
    await writing
    start, rest = sent.messages
    assert start["status"] == 200
    assert not rest.get("more_body")
    assert rest["body"].endswith(b"data: [DONE]\n\n")
    assert sent.hub.jobs == []


async def test_a_silent_stream_is_kept_alive_and_a_busy_one_is_not(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "KEEP_ALIVE_S", 0.2)
    writing = sent.writing(a_stream(sent))
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.6
    while loop.time() < until:
        sent.answer.mailbox.add(0, Progress(text="x"))
        await asyncio.sleep(0.01)
    busy = sent.body.count(b": keep-alive")
    since = loop.time()
    await wait_until(lambda: sent.body.count(b": keep-alive") == busy + 3, description="three more")
    assert loop.time() - since > 0.5  # three of them, and no more
    writing.cancel()
    await asyncio.wait({writing})
    assert sent.hub.jobs == ["x-0"]


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_ends_its_answer(sent: Sent, streaming: bool) -> None:
    reply = a_stream(sent) if streaming else ChatReply(sent.answer)
    writing = sent.writing(reply)
    sent.answer.mailbox.add(0, Progress(text="one"))
    await turn()
    sent.client.leave()
    await writing
    assert sent.hub.jobs.count("x-0") >= 1


async def test_one_who_left_before_is_told_at_once(sent: Sent) -> None:
    sent.client.leave()
    await sent.writing(a_stream(sent))
    assert not sent.messages
    assert "x-0" in sent.hub.jobs
