"""A gateway that asks for a key, with all that the clients of the field want of it behind it."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import CHAT, EMBEDDINGS, chat_weights, embedding_weights, started
from tests.processes import Stack

KEY = "sk-clients"
ECHO = "echo"  # says the last message again and again
SCRIPTED = "scripted"  # says what the last message tells it to
MAX_MODEL_LEN = 1024

collect_ignore = ["foreign"]  # for the Python of the clients' own environment


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The two demo models, and two that need no wit."""

    async def start(stack: Stack) -> None:
        await stack.gateway(TOKENBUS_API_KEYS=KEY)
        await stack.worker("--model-names", ECHO)
        await stack.worker("--model-names", SCRIPTED, module="tests.e2e.scripted_worker")
        await stack.worker("--model-path", embedding_weights(), "--model-names", EMBEDDINGS)
        names = ("--model-names", f"{CHAT},smol", "--max-model-len", str(MAX_MODEL_LEN), "--dtype", "float32")
        await stack.worker("--model-path", chat_weights(), *names, "--threads", "1")  # the clients need the other core
        await stack.models(CHAT, "smol", EMBEDDINGS, ECHO, SCRIPTED, key=KEY)

    with started(tmp_path_factory, start) as stack:
        yield stack
