"""Adapters as models of their own: BASE:NAME, with a queue of its own and the slots of the base."""

import asyncio

import pytest
import redis

from shared.messages import Drain, encode
from tests.conftest import wait_until
from tests.e2e.test_models_and_health import get
from tests.e2e.test_workers import only_line
from tests.e2e.wire import chat, error_of, post, stream
from tests.processes import Stack

ADAPTERS = ("--lora-modules", "sql=/none", "--lora-modules", "law=/none")


def say(stack: Stack, model: str) -> str:
    response = post(stack, "/v1/chat/completions", {**chat("a b", max_tokens=4), "model": model})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    return str(response.json()["choices"][0]["message"]["content"])


async def test_each_is_a_model_of_its_own(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    await stack.worker("--model-names", "echo,e", *ADAPTERS)
    await stack.models("echo", "e", *(f"{base}:{name}" for base in ("echo", "e") for name in ("sql", "law")))
    assert [say(stack, model) for model in ("echo", "e:sql", "echo:law")] == ["a b a b", "a b sql a", "a b law a"]
    missing = error_of(post(stack, "/v1/chat/completions", {**chat("a"), "model": "echo:sq"}))
    assert missing["code"] == "model_not_found"
    assert "Did you mean 'echo:sql'?" in missing["message"]
    assert get(stack, "/v1/models/echo:sql").json()["max_model_len"] == 8192
    rows = {row["models"][0]: row for row in await stack.registry()}
    assert set(rows) == {"echo", "echo:sql", "echo:law"}

    bus.publish(f"tokenbus:control:{rows['echo:sql']['worker']}", encode(Drain()))
    await stack.models("echo", "e", "echo:law", "e:law")
    assert say(stack, "echo") == "a b a b"


async def test_they_share_the_slots(stack: Stack) -> None:
    await stack.gateway()
    flags = ("--limit-worker-concurrency", "2", "--echo-interval-ms", "20")
    await stack.worker("--model-names", "echo", *ADAPTERS, *flags)
    models = ["echo", "echo:sql", "echo:law"] * 4
    running = [asyncio.create_task(stream(stack, {**chat("a b", max_tokens=25), "model": model})) for model in models]
    most = 0

    async def all_done() -> bool:
        nonlocal most
        most = max(most, sum(row["slots_used"] for row in await stack.registry()))
        return all(task.done() for task in running)

    await wait_until(all_done, description="all are answered", timeout=60)
    assert {len((await task).text().split()) for task in running} == {25}
    assert 2 <= most <= 4  # each of the others may wait for a job, and get it, when the last slot is taken


async def test_a_stream_goes_on_at_another_worker_with_the_same_adapter(stack: Stack) -> None:
    await stack.gateway()
    first = await stack.worker("--model-names", "echo", *ADAPTERS, "--echo-interval-ms", "20")
    streaming = asyncio.create_task(stream(stack, {**chat("a b", max_tokens=90), "model": "echo:law"}))
    await asyncio.sleep(0.5)
    await stack.worker("--model-names", "echo", *ADAPTERS[:2])  # which has only the other one
    await stack.worker("--model-names", "echo", *ADAPTERS[2:])
    first.kill()
    assert (await streaming).text().split() == ["a", "b", "law"] * 30


async def test_poison_for_an_adapter_runs_alone_in_the_engine(stack: Stack) -> None:
    """What is done to others while it runs is seen by a stream of the base: it waits, and is not killed."""
    await stack.gateway()
    flags = ("--echo-crash-word", "arsenic", "--echo-interval-ms", "5")
    refused = asyncio.create_task(
        asyncio.to_thread(post, stack, "/v1/chat/completions", {**chat("arsenic"), "model": "echo:sql"})
    )
    for _ in range(3):
        worker = await stack.worker("--model-names", "echo", *ADAPTERS, *flags)
        await wait_until(lambda: worker.ended or refused.done(), description="it is poison")  # noqa: B023
        if refused.done():
            break
    last = await stack.worker("--model-names", "echo", *ADAPTERS, *flags)
    assert (await refused).status_code in (500, 404)
    assert say(stack, "echo") == "a b a b"
    assert not last.ended


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--engine echo --lora-modules sql", "--lora-modules: write NAME=PATH"),
        ("--engine echo --lora-modules a=/x --lora-modules a=/y", "two adapters are called 'a'"),
        ("--engine llamacpp --model-path m.gguf --lora-modules a=/x", "--lora-modules is not for --engine llamacpp"),
        ("--engine echo --model-path a --model-path b --lora-modules a=/x", "is for a worker with one model"),
    ],
)
def test_what_cannot_be_served_is_one_line(stack: Stack, flags: str, why: str) -> None:
    assert why in only_line(stack.spawn("worker", *flags.split()))
