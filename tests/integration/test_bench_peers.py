"""Peers of the benchmark that need no installation, and how all of them start, fail and end."""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx2
import psutil
import pytest

from bench.peers.environments import python_of
from bench.peers.floor import Floor
from bench.peers.peer import Peer
from bench.systems import System, Unavailable
from tests.conftest import wait_until

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


class Upstream(Peer):
    """What LiteLLM asks, alone."""

    name = "upstream"

    async def launch(self, port: int) -> None:
        await self.run("worker", "upstream", [sys.executable, "-m", "bench.peers.upstream", "--port", str(port)])


class HalfBroken(Peer):
    name = "half-broken"

    async def launch(self, port: int) -> None:
        await self.run("worker", "worker", SLEEPS)
        await self.run("gateway", "api", [sys.executable, "-c", "raise SystemExit(3)"])


class Silent(Peer):
    name = "silent"

    async def launch(self, port: int) -> None:
        await self.run("worker", "worker", SLEEPS)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("bench.peers.peer.PLACE", tmp_path)
    monkeypatch.setattr("bench.peers.environments.PLACE", tmp_path)
    return tmp_path


def pids_of(system: System) -> list[int]:
    return [pid for pids in system.processes.values() for pid in pids]


async def streamed_tokens(url: str, body: dict[str, object]) -> int:
    """How many events bring text."""
    tokens, ended = 0, False
    async with httpx2.AsyncClient() as client, client.stream("POST", url, json={**body, "stream": True}) as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                tokens += bool(json.loads(line[6:])["choices"][0]["delta"].get("content"))
    assert ended
    return tokens


@pytest.mark.parametrize("kind", [Floor, Upstream])
async def test_a_producer_gives_as_many_tokens_as_were_asked_for(kind: type[Peer]) -> None:
    system: System = kind()
    try:
        await system.start()
        url = f"{system.base_url}/v1/chat/completions"
        pids = pids_of(system)
        for model in system.models.values():
            body = {"model": model, "max_tokens": 12, "messages": [{"role": "user", "content": "Say something."}]}
            async with httpx2.AsyncClient() as client:
                reply = (await client.post(url, json=body)).json()
            assert reply["usage"]["completion_tokens"] == 12
            assert len(reply["choices"][0]["message"]["content"].split()) == 12
            # Tokens may share an event where the client is behind; one that keeps up gets each by itself.
            assert 1 < await streamed_tokens(url, body) <= 12
    finally:
        await system.stop()
    assert pids
    assert not any(map(psutil.pid_exists, pids))
    await system.stop()


async def test_a_peer_of_which_a_part_ends_is_unavailable_and_leaves_nothing() -> None:
    system = HalfBroken()
    with pytest.raises(Unavailable, match="api ended with exit code 3") as raised:
        await system.start()
    assert "\n" not in str(raised.value)
    assert not any(map(psutil.pid_exists, pids_of(system)))


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    system = Silent()
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(system.start(), name="start")
        await wait_until(lambda: pids_of(system), description="its process runs")
        starting.cancel()
    assert not any(map(psutil.pid_exists, pids_of(system)))


async def test_an_environment_is_made_once() -> None:
    python = await python_of("empty", ["pip"], "pip")
    made = os.stat(python.parent.parent).st_ino
    assert await python_of("empty", ["pip"], "pip") == python
    assert os.stat(python.parent.parent).st_ino == made


async def test_an_environment_that_cannot_be_made_leaves_its_log_only(place: Path) -> None:
    with pytest.raises(Unavailable, match=r"see .*no-such\.install\.log"):
        await python_of("no-such", ["./no-such-package"], "no_such_package")
    assert os.listdir(place) == ["no-such.install.log"]
    assert "no-such-package" in (place / "no-such.install.log").read_text()


async def test_an_environment_whose_making_is_cancelled_leaves_its_log_only(place: Path) -> None:
    async with asyncio.TaskGroup() as tasks:
        making = tasks.create_task(python_of("half", ["pip"], "pip"), name="make")
        await wait_until(lambda: list(place.glob("half-*/half/pyvenv.cfg")), description="it is being made")
        making.cancel()
    assert os.listdir(place) == ["half.install.log"]
