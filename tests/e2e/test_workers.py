"""How workers start, what they are called, and what they say when they cannot. What breaks them: tests/fault."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
import redis

from tests.conftest import RedisServer, wait_until
from tests.e2e.wire import chat, error_of, post
from tests.fault.streams import check, rows
from tests.processes import Process, Stack


async def test_the_only_worker_is_listed_within_a_second_and_gone_within_five(stack: Stack) -> None:
    await stack.gateway()
    worker = await stack.worker("--model-names", "echo,parrot")
    await stack.models("echo", "parrot", timeout=1)
    worker.kill()
    await stack.models(timeout=5)


async def test_names_are_aliases_of_one_model_and_queue(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    await stack.worker("--model-names", "Big,small")
    await stack.models("Big", "small")
    for name in ("Big", "small"):
        response = post(stack, "/v1/chat/completions", {**chat("a b", max_tokens=2), "model": name})
        assert response.json()["model"] == name
        assert response.json()["choices"][0]["message"]["content"] == "a b"
    assert post(stack, "/v1/chat/completions", {**chat("a"), "model": "big"}).status_code == 404
    assert set(bus.keys("tokenbus:jobs:*")) == {f"tokenbus:jobs:{{Big}}:{name}" for name in ("high", "normal", "batch")}


async def test_a_name_that_means_other_weights_is_refused_and_leaves_nothing(stack: Stack, bus: redis.Redis) -> None:
    await stack.worker("--model-names", "echo,both")
    before = set(bus.keys("*"))
    for names in ("echo", "both", "new,both"):
        other = stack.spawn("worker", "--engine", "echo", "--model-names", names, "--max-model-len", "100")
        assert await asyncio.to_thread(other.wait) == 2
        said = [line for line in other.said().splitlines() if line.startswith("worker: ")]
        assert len(said) == 1
        assert "is taken" in said[0]
        assert "Traceback" not in other.said()
    assert set(bus.keys("*")) == before


async def test_the_order_of_starting_does_not_matter(own_stack: Stack, own_redis: RedisServer) -> None:
    own_redis.kill()
    port = own_redis.port
    worker = own_stack.spawn("worker", "--engine", "echo", "--model-names", "echo")
    gateway = own_stack.spawn("gateway", "--port", "0")
    gateway.signal(signal.SIGTERM)  # one that was told to leave while it waits
    for process in (worker, gateway):
        await wait_until(lambda: process.ended or "waiting for Redis" in process.said(), description="it says so")  # noqa: B023
    assert await asyncio.to_thread(gateway.wait, 10) == 0 or gateway.popen.returncode == -signal.SIGTERM
    waiting = asyncio.create_task(own_stack.gateway())
    await wait_until(lambda: own_stack.url, description="its address is known")
    own_redis.start()
    assert own_redis.port == port
    await waiting
    await own_stack.models("echo")
    await check(own_stack, 1, 5)


def only_line(process: Process) -> str:
    """What a process that cannot start says: one line, exit code 2, no traceback."""
    assert process.wait(120) == 2, process.said()
    lines = [line for line in process.said().splitlines() if line.strip() and " INFO " not in line]
    assert len(lines) == 1, process.said()
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model-path", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--model-path", "/nowhere.gguf"), "/nowhere.gguf"),
        (("--model-path", __file__), ".gguf"),
        (("--model-path", str(Path(__file__).parent)), "cannot load"),
        ((), "--model-path"),
        (("--engine", "vllm"), "--model-path is needed"),
        (("--engine", "unknown"), "--engine"),
        (("--engine", "echo", "--load-8bit", "--load-4bit"), "choose one of them"),
        (("--engine", "echo", "--max-gpu-memory", "10"), "--max-gpu-memory: '10' is no size of memory"),
        (("--model-path", str(Path(__file__).parent), "--device", "cpu", "--num-gpus", "2"), "--num-gpus 2 is for"),
        (("--engine", "echo", "--tensor-parallel-size", "2"), "--tensor-parallel-size is not for --engine echo"),
        (("--engine", "echo", "--no-such-flag"), "--no-such-flag"),
        (("--engine", "echo", "--max-model-len", "many"), "--max-model-len"),
        (("--engine", "echo", "--limit-worker-concurrency", "0"), "--limit-worker-concurrency"),
        (("--engine", "echo", "--redis-url", "nonsense"), "--redis-url"),
        (("--engine", "echo", "--redis-url", "redis://127.0.0.1:notaport"), "--redis-url"),
    ],
    ids=lambda value: " ".join(value)[-50:] if isinstance(value, tuple) else value[:20],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(stack: Stack, flags: tuple[str, ...], words: str) -> None:
    assert words in only_line(stack.spawn("worker", *flags))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--port", "99999999"), "--port"),
        (("--dispatch-method", "guess"), "--dispatch-method"),
        (("--api-keys-file", "/nowhere"), "/nowhere"),
        (("--no-such-flag",), "--no-such-flag"),
        (("--redis-url", "http://x"), "--redis-url"),
        (("--max-queue", "0"), "--max-queue"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_a_gateway_that_cannot_start_says_why_in_one_line(stack: Stack, flags: tuple[str, ...], words: str) -> None:
    assert words in only_line(stack.spawn("gateway", *flags))


@pytest.mark.parametrize("module", ["worker", "gateway", "registry"])
def test_a_wrong_redis_password_is_one_line(own_stack: Stack, own_redis: RedisServer, module: str) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("requirepass", "secret")
    flags = {"worker": ("--engine", "echo"), "gateway": ("--port", "0"), "registry": ("--json",)}[module]
    for password in ("", ":wrong@"):
        url = f"redis://{password}127.0.0.1:{own_redis.port}"
        line = only_line(own_stack.spawn(module, *flags, "--redis-url", url))
        assert f"127.0.0.1:{own_redis.port}" in line
        assert "wrong" not in line.replace("wrong password", "").replace("WRONGPASS", "")


def test_a_missing_library_is_one_line(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = stack.spawn("worker", "--model-path", str(tmp_path), PYTHONPATH=path, PYTHONSAFEPATH="")
    assert "torch" in only_line(process)


async def test_flags_without_a_meaning_are_accepted_with_a_warning(stack: Stack) -> None:
    worker = await stack.worker(
        "--controller-address", "http://localhost:21001", "--worker-address", "http://localhost:21002",
        "--host", "0.0.0.0", "--port", "21002", "--num-gpus", "1", "--device", "cpu",
    )  # fmt: skip
    assert "--controller-address" in worker.said()
    assert "without meaning" in worker.said()


async def test_registry_answers_for_the_health_check_of_a_worker(stack: Stack) -> None:
    await stack.worker("--model-names", "echo")
    (row,) = await rows(stack, 1)
    assert (row["models"], row["engine"], row["state"], row["slots_used"]) == (["echo"], "echo", "ready", 0)
    assert await asyncio.to_thread(stack.spawn("registry", "--alive", row["worker"]).wait) == 0
    assert await asyncio.to_thread(stack.spawn("registry", "--alive", "somebody-else").wait) == 1


async def test_an_error_of_one_request_does_not_touch_another(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "10")
    await stack.models("echo")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(check(stack, 1, 60))
        for _ in range(5):
            response = await asyncio.to_thread(post, stack, "/v1/embeddings", {"model": "echo", "input": "a"})
            assert error_of(response)["code"] == "unsupported_model"
