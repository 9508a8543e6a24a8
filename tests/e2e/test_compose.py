"""docker-compose.yml does what it promises, as far as that shows without an engine; see deploy/compose_check.sh."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from cli.demo_models import CHAT
from tests.conftest import wait_until
from tests.e2e.compose import ROOT, Compose


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Compose]:
    compose = Compose(tmp_path)
    yield compose
    compose.close()


def test_only_the_gateway_is_published_and_workers_can_be_scaled(compose: Compose) -> None:
    assert [name for name, service in compose.services.items() if "ports" in service] == ["gateway"]
    assert compose.services["gateway"]["ports"] == ["${BIND:-127.0.0.1}:${PORT:-8000}:8000"]
    assert not any("container_name" in service or "hostname" in service for service in compose.services.values())


def test_every_service_is_watched_and_comes_back(compose: Compose) -> None:
    for service in compose.services.values():
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("part", ["gateway", "worker"])
def test_the_images_do_not_run_as_root(part: str) -> None:
    lines = (ROOT / part / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] != "root"


async def test_nothing_is_healthy_before_it_runs_and_the_bus_is_never_open(compose: Compose) -> None:
    assert not compose.is_healthy("redis")
    compose.start("redis")
    await wait_until(lambda: compose.is_healthy("redis"), description="redis is healthy")
    (password,) = [line.split()[1] for line in compose.config() if line.startswith("requirepass")]
    assert len(password) >= 32
    assert not compose.is_healthy("gateway")
    assert not compose.is_healthy("worker")


@pytest.mark.model
@pytest.mark.skipif(CHAT.find() is None, reason="the demo model is not installed")
async def test_the_services_serve_together(compose: Compose) -> None:
    weights = CHAT.find()
    assert weights is not None
    compose.put_model(weights)
    compose.start("redis")
    await wait_until(lambda: compose.is_healthy("redis"), description="redis is healthy")
    compose.start("gateway")
    first, second = compose.start("worker"), compose.start("worker")  # --scale worker=2
    await wait_until(lambda: compose.has_workers(2), description="two workers are registered", timeout=240, every=0.5)
    assert compose.is_healthy("worker")
    await wait_until(lambda: compose.is_healthy("gateway"), description="the gateway is healthy", every=0.5)

    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{compose.port}/v1", timeout=60) as http:
        assert [model["id"] for model in (await http.get("models")).json()["data"]] == ["smollm2-135m"]
        reply = (await http.post("chat/completions", json=body)).json()
        assert "Paris" in reply["choices"][0]["message"]["content"]
        first.kill()
        await asyncio.to_thread(first.wait)
        assert (await http.post("chat/completions", json=body)).json()["choices"] == reply["choices"]
    assert second.poll() is None
