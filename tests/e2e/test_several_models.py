"""Several models in one worker: each by itself, as if it had a process of its own."""

import asyncio

import pytest
import redis

from shared.messages import Drain, encode
from tests.conftest import wait_until
from tests.e2e.conftest import CHAT, EMBEDDINGS, chat_weights, embedding_weights
from tests.e2e.test_workers import only_line
from tests.e2e.wire import chat, post, stream
from tests.processes import Stack


@pytest.mark.model
async def test_two_real_models_share_a_worker_and_one_leaves(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    paths = (f"{chat_weights()}={CHAT}", f"{embedding_weights()}={EMBEDDINGS}")
    flags = ("--engine", "transformers", "--max-model-len", "256")
    worker = await stack.worker(*flags, *(word for path in paths for word in ("--model-path", path)))
    await stack.models(CHAT, EMBEDDINGS, timeout=60)

    both = await asyncio.gather(
        stream(stack, {**chat("Say hi.", max_tokens=8), "model": CHAT}),
        asyncio.to_thread(post, stack, "/v1/embeddings", {"model": EMBEDDINGS, "input": "hi"}),
    )
    assert both[0].text()
    assert len(both[1].json()["data"][0]["embedding"]) == 384

    ids = {row["models"][0]: row["worker"] for row in await stack.registry()}
    assert len(set(ids.values())) == 2
    bus.publish(f"tokenbus:control:{ids[CHAT]}", encode(Drain()))
    await stack.models(EMBEDDINGS)
    assert post(stack, "/v1/embeddings", {"model": EMBEDDINGS, "input": "hi"}).status_code == 200
    assert await asyncio.to_thread(worker.terminate) == 0
    assert await stack.registry() == []


async def test_a_stream_of_one_goes_on_elsewhere_when_the_other_breaks_the_worker(stack: Stack) -> None:
    await stack.gateway("--no-worker-timeout", "60")
    flags = ("--engine", "echo", "--echo-crash-word", "arsenic", "--echo-interval-ms", "20")
    first = await stack.worker(*flags, "--model-path", "x=one", "--model-path", "y=two")
    streaming = asyncio.create_task(stream(stack, {**chat("a b c", max_tokens=100), "model": "one"}))
    await asyncio.sleep(0.5)
    second = await stack.worker("--model-names", "one", "--echo-interval-ms", "20")
    poison = chat("arsenic") | {"model": "two"}
    kills = asyncio.create_task(asyncio.to_thread(post, stack, "/v1/chat/completions", poison))
    await wait_until(lambda: first.ended, description="it is broken")
    reply = await streaming
    assert reply.text().split() == [("a", "b", "c")[i % 3] for i in range(100)]
    await stack.worker("--model-names", "two")
    assert (await kills).status_code == 200
    assert not second.ended


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--engine echo --model-path a --model-path b --model-names x,y,z", "--model-names: 2 models and 3 names"),
        ("--engine echo --model-path a=x --model-path b=x", "two of them are called 'x'; give others by PATH=NAME"),
        ("--model-path a --model-path b --gpu-memory-utilization 0.9", "for each of 2 models is more than all"),
        ("--engine transformers --model-path {0}=x --model-path /nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_served_is_one_line(stack: Stack, flags: str, why: str) -> None:
    assert why in only_line(stack.spawn("worker", *flags.format(embedding_weights()).split()))
