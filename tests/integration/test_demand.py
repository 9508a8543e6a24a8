"""Requests for models that are loaded on demand, at a gateway: they wait, and are told how far it is."""

import asyncio
from typing import Any

import pytest

from gateway.demand import Demand
from registry.directory import Directory
from shared.errors import ModelLoading, NoWorkers, QueueFull, ShuttingDown
from shared.keys import Keys
from shared.messages import Loadable, LoadState, ModelRecord, Offer, encode
from tests.integration.bus import make_info


class World:
    """One gateway's view, and loaders that say what a test makes them say."""

    def __init__(self, client: Any, keys: Keys, *, max_waiting: int = 10) -> None:
        self.client = client
        self.keys = keys
        self.directory = Directory(client, keys)
        self.demand = Demand(client, keys, self.directory, max_waiting)

    async def offer(self, state: LoadState, *, loader: str = "l-1", **told: Any) -> None:
        model = Loadable(names=["a", "alias"], state=state, **told)
        await self.client.set(self.keys.loader(loader), encode(Offer(id=loader, models=[model])), px=5000)
        await self.client.zadd(self.keys.loaders(), {loader: 1})
        await self.client.expire(self.keys.loaders(), 5)
        await self.directory.refresh()

    async def serve(self) -> None:
        info = make_info("w", model="a", names=["a", "alias"])
        record = encode(
            ModelRecord(model="a", fingerprint="f", max_model_len=9, engine="echo", worker="w", last_seen=2e9)
        )
        await self.client.hset(self.keys.models(), mapping={"a": record, "alias": record})
        await self.client.expire(self.keys.models(), 5)
        await self.client.zadd(self.keys.workers("a"), {"w": 1})
        await self.client.set(self.keys.worker("a", "w"), encode(info), px=5000)
        await self.directory.refresh()


@pytest.fixture
def world(client: Any, keys: Keys) -> World:
    return World(client, keys)


async def test_what_nobody_loads_does_not_wait(world: World) -> None:
    await world.directory.refresh()
    assert world.demand.until_live("nobody").done()


async def test_what_is_asked_for_is_told_and_waits_until_it_is_there(world: World) -> None:
    await world.offer("unloaded")
    live = world.demand.until_live("alias")
    running = asyncio.create_task(world.demand.run())
    try:
        assert not live.done()
        await asyncio.sleep(0.4)
        told = await world.client.zscore(world.keys.demand(), "a")
        assert told is not None
        await asyncio.sleep(0.4)
        assert await world.client.zscore(world.keys.demand(), "a") > told  # as long as somebody waits
        await world.serve()
        async with asyncio.timeout(2):
            await live
        assert world.demand.until_live("a").done()
    finally:
        running.cancel()


async def test_after_a_minute_it_is_told_how_far_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Demand.LONGEST_S == 60
    monkeypatch.setattr(Demand, "LONGEST_S", 0.1)
    await world.offer("loading", progress=0.25, eta_seconds=31.0)
    live = world.demand.until_live("a")
    running = asyncio.create_task(world.demand.run())
    with pytest.raises(ModelLoading) as caught:
        await live
    running.cancel()
    error = caught.value
    assert (error.status, error.retry_after) == (503, 31.0)
    assert error.body()["error"] == {
        "message": "The model 'a' is not loaded yet (loading).",
        "type": "server_error",
        "param": "model",
        "code": "model_loading",
        "loading": {"state": "loading", "progress": 0.25, "eta_seconds": 31.0},
    }


async def test_what_cannot_be_loaded_is_told_at_once(world: World) -> None:
    await world.offer("failed", error="no such file", eta_seconds=20.0)
    live = world.demand.until_live("a")
    assert live.done()
    with pytest.raises(ModelLoading, match="could not be loaded: no such file"):
        await live


async def test_only_so_many_wait_and_who_leaves_makes_room(client: Any, keys: Keys) -> None:
    world = World(client, keys, max_waiting=2)
    await world.offer("unloaded")
    first, second = world.demand.until_live("a"), world.demand.until_live("a")
    with pytest.raises(QueueFull):
        await world.demand.until_live("a")
    first.cancel()
    running = asyncio.create_task(world.demand.run())
    await asyncio.sleep(0.4)
    assert not world.demand.until_live("a").done()
    world.demand.fail_all(ShuttingDown("leaving"))
    running.cancel()
    with pytest.raises(ShuttingDown):
        await second


async def test_a_loader_that_is_gone_is_waited_for_a_moment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may tell again: Redis may have come back empty."""
    monkeypatch.setattr(Directory, "OFFERS_MISSED_S", 1.0)
    await world.offer("loading")
    live = world.demand.until_live("a")
    running = asyncio.create_task(world.demand.run())
    await world.client.delete(world.keys.loader("l-1"))
    await world.directory.refresh()
    await asyncio.sleep(0.4)
    assert not live.done()
    await asyncio.sleep(0.7)
    await world.directory.refresh()
    async with asyncio.timeout(2):
        await live
    running.cancel()
    with pytest.raises(NoWorkers):
        await world.directory.resolve("a")


async def test_of_two_loaders_the_one_that_is_further_is_believed(world: World) -> None:
    await world.offer("loading", progress=0.5)
    await world.offer("failed", loader="l-2", error="no memory")
    await world.offer("unloaded", loader="l-0")
    assert world.directory.snapshot.loadable["alias"].state == "loading"


async def test_an_offer_that_nobody_understands_breaks_nothing(world: World) -> None:
    await world.offer("unloaded")
    await world.client.set(world.keys.loader("l-2"), b"{}", px=5000)
    await world.client.zadd(world.keys.loaders(), {"l-2": 1})
    await world.directory.refresh()
    assert set(world.directory.snapshot.loadable) == {"a", "alias"}
