"""The process within a worker that computes is killed, or cannot start: its requests go on elsewhere."""

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_until
from tests.e2e.conftest import chat_weights
from tests.e2e.wire import Streamed, chat, stream
from tests.engines.conftest import llama_for_vllm, save_model, tokenizer
from tests.fault.streams import Progress, redelivered, rows, shared_by, watched
from tests.processes import VLLM, Process, Stack, is_alive

__all__ = ["llama_for_vllm", "save_model", "tokenizer"]
TOKENS = 2500
needs_vllm = pytest.mark.skipif(not VLLM.exists(), reason="vLLM is not here: `make test` installs it")


def engine_of(worker: Process) -> psutil.Process:
    """The process that schedules."""
    children = psutil.Process(worker.pid).children(recursive=True)
    return next(child for child in children if "EngineCore" in child.name())


@needs_vllm
async def test_when_vllm_s_engine_is_killed_its_streams_go_on_at_another_worker(
    stack: Stack, llama_for_vllm: Path
) -> None:
    await stack.gateway()
    flags = ("--model-path", str(llama_for_vllm), "--model-names", "echo", "--dtype", "float32", "--threads", "1")
    flags = (*flags, "--max-num-seqs", "2")
    await stack.worker(*flags)
    body = chat("the quick brown fox", max_tokens=TOKENS, temperature=0, ignore_eos=True)
    undisturbed = await stream(stack, body)
    (other,) = await rows(stack, 1)

    worker = await stack.worker("--engine", "vllm", *flags, "--enforce-eager", python=str(VLLM))
    found = {row["engine"]: row for row in await rows(stack, 2)}
    assert set(found) == {"transformers", "vllm"}
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        streams = [
            tasks.create_task(watched(stack, body, progress, number)) for number in range(4)
        ]  # as many as both have slots
        await progress.reached(60, streams=4)
        await shared_by(stack, workers=2, slots=4)
        engine_of(worker).kill()
    assert await asyncio.to_thread(worker.wait) == 1
    assert "vLLM's engine has ended" in worker.said()
    for one in streams:
        assert_same(one.result(), undisturbed)
    assert await redelivered(stack) > 0
    assert [row["worker"] for row in await rows(stack, 1)] == [other["worker"]]


def assert_same(streamed: Streamed, undisturbed: Streamed) -> None:
    assert streamed.error is None
    assert streamed.text() == undisturbed.text()
    assert streamed.finish_reasons == ["length"]


@needs_vllm
async def test_nothing_of_vllm_outlives_a_worker_that_is_killed_while_it_loads(
    stack: Stack, llama_for_vllm: Path
) -> None:
    flags = ("--engine", "vllm", "--model-path", str(llama_for_vllm), "--model-names", "echo", "--enforce-eager")
    worker = stack.spawn("worker", *flags, python=str(VLLM))
    loading = psutil.Process(worker.pid)

    def spawned() -> list[psutil.Process]:
        children = loading.children(recursive=True)
        return children if any("spawn_main" in " ".join(child.cmdline()) for child in children) else []

    children = await wait_until(spawned, description="vLLM has begun another process", timeout=180)
    worker.kill()
    await wait_until(lambda: not any(map(is_alive, children)), description="all have ended")


@needs_vllm
async def test_what_vllm_cannot_serve_is_one_line(stack: Stack, llama_for_vllm: Path) -> None:
    """Found by vLLM itself. What is found before: tests/engines/vllm."""
    flags = ("--engine", "vllm", "--model-path", str(llama_for_vllm), "--quantization", "awq")
    worker = stack.spawn("worker", *flags, python=str(VLLM))
    assert await asyncio.to_thread(worker.wait, 240) == 2
    (line,) = (line for line in worker.said().splitlines() if line.startswith("worker: "))
    assert "vLLM cannot serve" in line


# -- llama.cpp ---------------------------------------------------------------------------------------------------------

LLAMA = ("--engine", "llamacpp", "--model-path", chat_weights(), "--model-names", "echo", "--max-model-len", "1024")
STORY = chat("Write a story about a lighthouse.", max_tokens=150, temperature=0)


def llama_of(worker: Process) -> psutil.Process:
    (child,) = psutil.Process(worker.pid).children()
    return child


@pytest.mark.model
async def test_when_llama_server_is_killed_its_streams_go_on_when_it_is_back(stack: Stack) -> None:
    """At the same worker, which has no other to give them to."""
    await stack.gateway()
    worker = await stack.worker(*LLAMA, "--threads", "1")
    undisturbed = await stream(stack, STORY)
    assert undisturbed.finish_reasons == ["length"]
    (before,) = await rows(stack, 1)
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(watched(stack, STORY, progress, number)) for number in range(2)]
        await progress.reached(20, streams=2)
        llama_of(worker).kill()
    for one in streams:
        assert_same(one.result(), undisturbed)
    assert "it is started again" in worker.said()
    (after,) = await rows(stack, 1)
    assert after["worker"] == before["worker"]  # it has lost nothing but a process
    assert await redelivered(stack) == 2


@pytest.mark.model
async def test_when_llama_server_hangs_its_worker_ends_and_its_streams_go_on_at_the_next(stack: Stack) -> None:
    await stack.gateway()
    short = chat("Write a story about a lighthouse.", max_tokens=60, temperature=0)
    worker = await stack.worker(*LLAMA, "--threads", "1", "--hang-timeout", "4")
    undisturbed = await stream(stack, short)
    progress = Progress()
    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(watched(stack, short, progress, number)) for number in range(2)]
        await progress.reached(10, streams=2)
        llama_of(worker).suspend()
        next_one = tasks.create_task(stack.worker(*LLAMA, "--threads", "1"))
    assert await asyncio.to_thread(worker.wait) == 1
    assert "the engine hangs" in worker.said()
    assert not next_one.result().ended
    for one in streams:
        assert_same(one.result(), undisturbed)


@pytest.mark.model
async def test_nothing_of_llama_cpp_outlives_its_worker(stack: Stack) -> None:
    await stack.gateway()
    worker = await stack.worker(*LLAMA)
    child = llama_of(worker)
    worker.kill()
    await wait_until(lambda: not is_alive(child), description="it has ended")


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (LLAMA, {"LLAMA_SERVER": "/bin/false"}, "llama-server has ended (1)"),
        ((*LLAMA, "--flash-attn", "on"), {}, "--flash-attn on: llama-server's own flags need one in PATH"),
        ((*LLAMA[:2], "--model-path", str(Path(__file__).parent)), {}, "serves .gguf files"),
    ],
    ids=["it ends", "flags of nobody", "a folder"],
)
async def test_what_llama_cpp_cannot_serve_is_one_line(
    stack: Stack, flags: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    worker = stack.spawn("worker", *flags, **environment)
    assert await asyncio.to_thread(worker.wait) == 2
    (line,) = (line for line in worker.said().splitlines() if line.startswith("worker: "))
    assert said in line
