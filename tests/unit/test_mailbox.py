"""The mailbox between the hub and the task that answers a request."""

import asyncio

import pytest

from gateway.inflight import ClientGone, Mailbox
from shared.errors import WorkerLost
from shared.messages import Progress, Usage


async def test_updates_of_a_choice_merge_while_nobody_looks() -> None:
    mailbox = Mailbox()
    for word in ("a", "b", "c"):
        mailbox.add(0, Progress(text=word))
    mailbox.add(1, Progress(text="x"))
    mailbox.finish(0, "stop", Usage(1, 3))
    updates = await mailbox.get()
    assert [(update.index, update.text, update.finish_reason) for update in updates] == [
        (0, "abc", "stop"),
        (1, "x", None),
    ]


async def test_get_waits_for_the_next_update() -> None:
    mailbox = Mailbox()
    mailbox.add(0, Progress(text="a"))
    await mailbox.get()
    waiting = asyncio.ensure_future(mailbox.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    mailbox.add(0, Progress(text="b"))
    assert (await waiting)[0].text == "b"


async def test_an_error_comes_after_the_text_that_came_before_it() -> None:
    mailbox = Mailbox()
    mailbox.add(0, Progress(text="last words"))
    mailbox.fail(WorkerLost("gone"))
    assert (await mailbox.get())[0].text == "last words"
    with pytest.raises(WorkerLost):
        await mailbox.get()


async def test_a_closed_mailbox_tells_whoever_waits() -> None:
    mailbox = Mailbox()
    waiting = asyncio.ensure_future(mailbox.get())
    await asyncio.sleep(0)
    mailbox.close()
    with pytest.raises(ClientGone):
        await waiting


async def test_embeddings_made_again_replace_the_first_ones() -> None:
    mailbox = Mailbox()
    mailbox.add(0, Progress(embeddings=["one"]))
    mailbox.add(0, Progress(embeddings=["one"]))
    assert (await mailbox.get())[0].embeddings == ["one"]
