"""A gateway that asks for a key, with all that the clients of the field want of it behind it."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import CHAT, EMBEDDINGS, chat_weights, embedding_weights, server_in
from tests.processes import Stack

KEY = "sk-clients"
ECHO = "echo"  # says the last message again and again
SCRIPTED = "scripted"  # says what the last message tells it to
MAX_MODEL_LEN = 1024

collect_ignore = ["foreign"]  # for the Python of the clients' own environment


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The two demo models, and two that need no wit. Started on an event loop of its own: whatever hangs on that of the
    tests ends with every asynchronous one."""
    server = server_in(tmp_path_factory.mktemp("redis"))
    server.start()
    stack = Stack(server.url, tmp_path_factory.mktemp("served"))
    try:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_start(stack))
        yield stack
    finally:
        stack.close()
        server.kill()


async def _start(stack: Stack) -> None:
    await stack.gateway(TOKENBUS_API_KEYS=KEY)
    await stack.worker("--model-names", ECHO)
    await stack.worker("--model-names", SCRIPTED, module="tests.e2e.scripted_worker")
    await stack.worker("--model-path", embedding_weights(), "--model-names", EMBEDDINGS)
    names = ("--model-names", f"{CHAT},smol", "--max-model-len", str(MAX_MODEL_LEN))
    await stack.worker("--model-path", chat_weights(), *names, "--threads", "1")  # the clients need the other core
    await stack.models(CHAT, "smol", EMBEDDINGS, ECHO, SCRIPTED, key=KEY)
