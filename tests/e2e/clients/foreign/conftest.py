"""For the pytest of the clients' own environment, where nothing of this project is installed: where the gateway is."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

CHAT = "smollm2-135m"
EMBEDDINGS = "all-minilm-l6-v2"
ECHO = "echo"  # says the last message again and again
SCRIPTED = "scripted"  # says what the last message tells it to


@pytest.fixture(scope="session")
def url() -> str:
    """Of the API, with its /v1."""
    return os.environ["CLIENTS_URL"]


@pytest.fixture(scope="session")
def key() -> str:
    return os.environ["CLIENTS_KEY"]


@pytest.fixture
def script() -> Callable[..., str]:
    """What to say to the scripted model for it to make these steps."""

    def script(*steps: dict[str, Any]) -> str:
        return json.dumps(steps)

    return script
