"""The gateway's lease outlives a held event loop, but not one that hangs."""

import asyncio
import time
from typing import Any

import pytest

from gateway import lease
from gateway.lease import GatewayLease
from shared.keys import Keys
from tests.conftest import wait_until


@pytest.fixture
def redis_url(valkey_url: str) -> str:
    """One server is enough: this is about time, and it takes some."""
    return valkey_url


async def test_a_held_loop_does_not_cost_the_lease_and_one_that_hangs_does(
    client: Any, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOP_HANGS_AFTER_S", 4.0)
    key = keys.gateway("gw")
    task = asyncio.create_task(GatewayLease(redis_url, key).run(), name="lease")
    await wait_until(lambda: client.exists(key), description="it is held")
    time.sleep(3.5)  # noqa: ASYNC251 - the loop is held: longer than a lease
    assert await client.pttl(key) > 1500
    time.sleep(8)  # noqa: ASYNC251
    assert not await client.exists(key)
    await wait_until(lambda: client.exists(key), description="it moves again")
    task.cancel()
    await asyncio.wait({task})
    await wait_until(lambda: _gone(client, key), description="it runs out", timeout=5)


async def _gone(client: Any, key: str) -> bool:
    return not await client.exists(key)
