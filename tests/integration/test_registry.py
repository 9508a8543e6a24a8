"""Leases, names, the live view, and the janitor."""

import threading
from typing import Any

import msgspec
import pytest

from registry.__main__ import is_alive
from registry.directory import Directory, nearest
from registry.janitor import Janitor
from registry.lease import LeaseKeeper, bind_names, deregister, register
from registry.table import render, rows
from shared.errors import ModelNotFound, NoWorkers, StartupError
from shared.keys import GROUP, Keys
from shared.messages import WorkerInfo, decode_job, encode
from shared.queue import JobQueue
from tests.conftest import wait_until
from tests.integration.bus import make_info, make_job

INFO = make_info(names=["echo", "Parrot"], running=1)


def other(**fields: Any) -> WorkerInfo:
    return msgspec.structs.replace(INFO, **fields)


@pytest.fixture
def directory(client: Any, keys: Keys) -> Directory:
    return Directory(client, keys)


async def test_a_registered_worker_is_found_by_each_of_its_names(client: Any, keys: Keys, directory: Directory) -> None:
    await register(client, keys, INFO)
    for name in INFO.names:
        assert (await directory.resolve(name)).model == "echo"
    assert directory.snapshot.live_names() == ["Parrot", "echo"]


async def test_a_lease_runs_out_by_itself(client: Any, keys: Keys, directory: Directory) -> None:
    await register(client, keys, INFO)
    assert 0 < await client.pttl(keys.worker("echo", INFO.id)) <= 2500


async def test_known_but_dead_is_told_from_never_heard_of(client: Any, keys: Keys, directory: Directory) -> None:
    await register(client, keys, INFO)
    await deregister(client, keys, INFO)
    with pytest.raises(NoWorkers) as error:
        await directory.resolve("echo")
    assert error.value.retry_after
    with pytest.raises(ModelNotFound):
        await directory.resolve("unheard-of")


async def test_what_somebody_else_wrote_in_the_registry_is_passed_over(
    client: Any, keys: Keys, directory: Directory
) -> None:
    await client.hset(keys.models(), mapping={"junk": "{", "list": "[]", b"\xff": "null", "echo": "7"})
    await client.zadd(keys.workers("echo"), {b"\xff\xfe": 1})
    await register(client, keys, INFO)
    await client.set(keys.worker("echo", "stranger"), "junk", px=60_000)
    await client.zadd(keys.workers("echo"), {"stranger": 1})
    await directory.resolve("echo")
    await JobQueue(client, keys).enqueue([make_job()], 10, "shortest_queue")
    await Janitor(client, keys, "gw").sweep()
    await client.delete(keys.worker("echo", "stranger"))


async def test_a_near_miss_says_which_name_was_meant(client: Any, keys: Keys, directory: Directory) -> None:
    await register(client, keys, INFO)
    with pytest.raises(ModelNotFound, match="Did you mean 'Parrot'"):
        await directory.resolve("parrot")


async def test_a_name_that_redis_forgot_is_still_known_here(client: Any, keys: Keys, directory: Directory) -> None:
    """It came back empty; its workers will be back in a moment: 503, not 404, which nobody would try again."""
    await register(client, keys, INFO)
    await directory.refresh()
    await client.flushall()
    await directory.refresh()
    with pytest.raises(NoWorkers):
        await directory.resolve("echo")
    with pytest.raises(ModelNotFound):
        await directory.resolve("never")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("qwen2.5-7b", "Qwen2.5-7B"), ("qwen25-7b", "Qwen2.5-7B"), ("llama-3", "llama3-8b"), ("gpt-4o", None)],
)
def test_nearest_name(name: str, meant: str | None) -> None:
    assert nearest(name, ["Qwen2.5-7B", "llama3-8b"]) == meant


async def test_a_name_bound_to_other_weights_is_refused(client: Any, keys: Keys) -> None:
    await register(client, keys, INFO)
    with pytest.raises(StartupError, match=r"'Parrot' is taken: worker host-w1 serves 'echo' under it, with other"):
        await register(client, keys, other(id="host-w2", model="new", names=["new", "Parrot"], fingerprint="beef"))
    assert not await client.exists(keys.worker("new", "host-w2"))
    assert not await client.hexists(keys.models(), "new")


async def test_a_name_is_free_for_other_weights_once_its_last_worker_has_left(client: Any, keys: Keys) -> None:
    other_weights = other(id="host-w3", fingerprint="beef")
    await register(client, keys, INFO)
    await register(client, keys, other(id="host-w2"))
    await deregister(client, keys, other(id="host-w2"))
    with pytest.raises(StartupError, match="is taken"):
        await register(client, keys, other_weights)
    await deregister(client, keys, INFO)
    await register(client, keys, other_weights)


async def test_any_number_of_workers_may_serve_the_same_weights(client: Any, keys: Keys, directory: Directory) -> None:
    await register(client, keys, INFO)
    await register(client, keys, other(id="host-w2"))
    await directory.refresh()
    assert len(directory.snapshot.workers["echo"]) == 2


async def test_a_lost_lease_is_not_taken_back(client: Any, redis_url: str, keys: Keys) -> None:
    await register(client, keys, INFO)
    lost = threading.Event()
    keeper = LeaseKeeper(redis_url, keys, lambda: INFO, lambda: True, lost.set)
    keeper.start()
    await client.delete(keys.worker("echo", INFO.id))
    await wait_until(lost.is_set, description="the loss is noticed", timeout=3)
    keeper.stop()
    assert not await client.exists(keys.worker("echo", INFO.id))


async def test_the_lease_follows_what_the_worker_says_of_itself(client: Any, redis_url: str, keys: Keys) -> None:
    await register(client, keys, INFO)
    running = [1]
    keeper = LeaseKeeper(redis_url, keys, lambda: other(running=running[0]), lambda: True, lambda: None)
    keeper.start()
    running[0] = 3

    async def shown() -> bool:
        found = await rows(client, keys)
        return bool(found and found[0]["slots_used"] == 3)

    await wait_until(shown, description="the new value is in the lease", timeout=3)
    keeper.stop()


async def test_a_worker_that_does_not_move_loses_its_lease(client: Any, redis_url: str, keys: Keys) -> None:
    await register(client, keys, INFO)
    await client.pexpire(keys.worker("echo", INFO.id), 800)
    keeper = LeaseKeeper(redis_url, keys, lambda: INFO, lambda: False, lambda: None)
    keeper.start()

    async def gone() -> bool:
        return not await client.exists(keys.worker("echo", INFO.id))

    await wait_until(gone, description="the lease ran out", timeout=3)
    keeper.stop()


async def test_a_worker_is_alive_by_its_id_and_by_its_host(client: Any, keys: Keys) -> None:
    await register(client, keys, INFO)
    assert await is_alive(client, keys, "host-w1")
    assert await is_alive(client, keys, "host")
    assert not await is_alive(client, keys, "hos")


async def test_the_table_has_a_row_per_worker(client: Any, keys: Keys) -> None:
    await register(client, keys, INFO)
    await JobQueue(client, keys).enqueue([make_job()], 10, "pull")
    (row,) = await rows(client, keys)
    assert (row["worker"], row["models"], row["slots_used"], row["slots"], row["queue"]) == (
        "host-w1",
        ["echo", "Parrot"],
        1,
        4,
        1,
    )
    assert render([row]).row_count == 1


class TestJanitor:
    @pytest.fixture
    def janitor(self, client: Any, keys: Keys) -> Janitor:
        return Janitor(client, keys, "gw")

    async def prepare(self, client: Any, keys: Keys, *, gateway_lives: bool) -> JobQueue:
        """A worker with one job running and one in its inbox, which then dies."""
        queue = JobQueue(client, keys)
        await queue.create_groups("echo", INFO.id)
        await register(client, keys, INFO)
        await queue.enqueue([make_job()], 10, "pull")
        assert await queue.claim("echo", INFO.id, free=1, block_ms=0)
        await client.xadd(keys.inbox("echo", INFO.id), {"job": encode(make_job("s-0"))})
        await client.delete(keys.worker("echo", INFO.id))
        if gateway_lives:
            await client.set(keys.gateway("gw"), "1", px=60_000)
        return queue

    async def test_nothing_of_the_dead_is_left(self, client: Any, keys: Keys, janitor: Janitor) -> None:
        await self.prepare(client, keys, gateway_lives=False)
        await janitor.sweep()
        stream = keys.jobs("echo", "normal")
        assert await client.xlen(stream) == 0
        assert (await client.xpending(stream, GROUP))["pending"] == 0
        assert await client.xinfo_consumers(stream, GROUP) == []
        assert not await client.exists(keys.inbox("echo", INFO.id), keys.workers("echo"))

    @pytest.mark.parametrize("gateway_lives", [False, True])
    async def test_what_waits_goes_with_its_gateway(
        self, client: Any, keys: Keys, janitor: Janitor, monkeypatch: pytest.MonkeyPatch, gateway_lives: bool
    ) -> None:
        """Also without a worker, and a part at a time, among jobs that are waited for."""
        monkeypatch.setattr(Janitor, "BATCH", 4)
        monkeypatch.setattr(Janitor, "WAITED_MS", -1000)
        await register(client, keys, INFO)
        await client.delete(keys.worker("echo", INFO.id))
        queue = JobQueue(client, keys)
        await client.set(keys.gateway("other"), "1", px=60_000)
        if gateway_lives:
            await client.set(keys.gateway("gw"), "1", px=60_000)
        for number in range(12):
            owner = "other" if number % 2 else "gw"
            await queue.enqueue([make_job(f"r{number}-0", gateway=owner, payload=0)], 100, "pull")
            await client.set(keys.payload(f"r{number}"), "[]", px=60_000)
        for _ in range(5):
            await janitor.sweep()
        assert await client.xlen(keys.jobs("echo", "normal")) == (12 if gateway_lives else 6)
        left = {number for number in range(12) if await client.exists(keys.payload(f"r{number}"))}
        assert left == set(range(12) if gateway_lives else range(1, 12, 2))

    async def test_what_was_withdrawn_goes_though_its_gateway_lives(
        self, client: Any, keys: Keys, janitor: Janitor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its gateway never learnt where it lies, if the answer to its enqueue was lost."""
        monkeypatch.setattr(Janitor, "WAITED_MS", -1000)
        await register(client, keys, INFO)
        await client.set(keys.gateway("gw"), "1", px=60_000)
        queue = JobQueue(client, keys)
        await queue.enqueue([make_job("c-0"), make_job("o-0", deadline=1), make_job("r-0")], 10, "pull")
        await client.set(keys.cancelled("c-0"), "1", px=60_000)
        await janitor.sweep()
        ((_, fields),) = await client.xrange(keys.jobs("echo", "normal"))
        assert decode_job(fields[b"job"]).id == "r-0"

    async def test_what_a_living_gateway_owns_is_left_to_it(self, client: Any, keys: Keys, janitor: Janitor) -> None:
        queue = await self.prepare(client, keys, gateway_lives=True)
        await janitor.sweep()
        assert len(await queue.pending_of("echo", INFO.id)) == 1
        assert await client.xlen(keys.inbox("echo", INFO.id)) == 1
        assert await client.zscore(keys.workers("echo"), INFO.id) is not None

    async def test_a_worker_that_died_before_it_had_a_lease_leaves_nothing(
        self, client: Any, keys: Keys, janitor: Janitor
    ) -> None:
        await bind_names(client, keys, INFO)
        await JobQueue(client, keys).create_groups("echo", INFO.id)
        await janitor.sweep()
        assert not await client.exists(keys.inbox("echo", INFO.id), keys.workers("echo"))

    async def test_the_living_are_not_touched(self, client: Any, keys: Keys, janitor: Janitor) -> None:
        queue = JobQueue(client, keys)
        await queue.create_groups("echo", INFO.id)
        await register(client, keys, INFO)
        await queue.enqueue([make_job()], 10, "pull")
        await queue.claim("echo", INFO.id, free=1, block_ms=0)
        await janitor.sweep()
        assert len(await queue.pending_of("echo", INFO.id)) == 1
