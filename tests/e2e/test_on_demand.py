"""`tokenbus up --models-file`: models come when they are asked for and leave when they are idle."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import free_port, wait_until
from tests.e2e.up import Up

MODELS = """
keep_alive: never
memory: 2GiB
models:
  a: {engine: echo, memory: 1GiB, preload: true}
  b: {engine: echo, memory: 1GiB, aliases: [bee], echo_interval_ms: 50}
  c: {engine: echo, memory: 1GiB}
  bad: {path: /nowhere/at/all, memory: 0, keep_alive: 1s}
  brief: {engine: echo, memory: 0, keep_alive: 0, lora_modules: {sql: /none}}
aliases:
  both: {b: 1, c: 1}
"""


class Stack:
    def __init__(self, up: Up, port: int) -> None:
        self.up = up
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=90)

    def states(self) -> dict[str, str]:
        return {row["id"]: row["status"]["value"] for row in self.http.get("/v1/models").json()["data"]}

    def ask(self, model: str, tokens: int = 2, **also: Any) -> httpx2.Response:
        messages = [{"role": "user", "content": "x y"}]
        return self.http.post(
            "/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": tokens, **also}
        )


@pytest.fixture
def start(tmp_path: Path, valkey_url: str) -> Iterator[Callable[[], Stack]]:
    """Over a Redis that is there."""
    started: list[Stack] = []

    def start() -> Stack:
        file, port = tmp_path / "models.yaml", free_port()
        file.write_text(MODELS)
        started.append(Stack(Up(tmp_path, "--port", str(port), "--models-file", str(file), REDIS_URL=valkey_url), port))
        return started[-1]

    yield start
    for stack in started:
        stack.http.close()
        stack.up.close()


async def test_what_is_asked_for_is_loaded_and_the_least_used_that_is_idle_makes_room(
    start: Callable[[], Stack],
) -> None:
    stack = start()
    assert "(b, c, bad, brief: loaded when asked for)" in stack.up.banner()
    unloaded = dict.fromkeys(("b", "bee", "c", "bad", "brief", "brief:sql", "both"), "unloaded")
    assert stack.states() == {"a": "loaded", **unloaded}

    answer = stack.ask("bee")
    assert answer.json()["choices"][0]["message"]["content"] == "x y"
    assert stack.states() == {"a": "loaded", **unloaded} | dict.fromkeys(("b", "bee", "both"), "loaded")

    # a is used later than b, but b is busy: so a has to leave.
    with ThreadPoolExecutor(2) as threads:
        busy = threads.submit(stack.ask, "b", 160)
        await asyncio.sleep(1)
        assert stack.ask("a").status_code == 200
        assert stack.ask("c").status_code == 200
        assert [stack.states()[name] for name in "abc"] == ["unloaded", "loaded", "loaded"]
        assert busy.result().json()["usage"]["completion_tokens"] == 160

    # Somebody asks for what cannot be loaded: neighbours do not notice, and the reason is told.
    failed = stack.ask("bad")
    error = failed.json()["error"]
    assert (failed.status_code, error["code"], error["loading"]["state"]) == (503, "model_loading", "failed")
    assert "no such file or directory: /nowhere/at/all" in error["message"]
    assert int(failed.headers["retry-after"]) <= 30
    assert [stack.states()[name] for name in ("bad", "b", "c")] == ["failed", "loaded", "loaded"]

    # One that is killed is started again, and what is asked for meanwhile waits for it.
    stack.up.child("worker", "--model-names b,bee").kill()
    assert stack.ask("b").status_code == 200
    assert stack.up.interrupt() == 0
    assert not stack.up.survivors()


async def test_what_is_idle_leaves_and_no_request_is_lost_meanwhile(start: Callable[[], Stack]) -> None:
    stack = start()
    stack.up.banner()
    assert stack.ask("brief").status_code == 200
    await wait_until(lambda: stack.states()["brief"] == "unloaded", description="it is idle, so it leaves")
    # At every moment of its leaving and coming.
    until, asked = time.monotonic() + 9, 0
    while time.monotonic() < until:
        answer = stack.ask(("brief", "brief:sql")[asked % 2])
        assert answer.status_code == 200, json.dumps(answer.json())
        asked += 1
        await asyncio.sleep(1.8 + asked % 8 * 0.1)
    assert stack.states()["a"] == "loaded"
