"""Every key that PROTOCOL.md names can be seen when its situation occurs, and is gone or ageing when it is over."""

import json

import pytest
import redis

from tests.conftest import wait_until
from tests.e2e.wire import Connection, chat, post
from tests.processes import Stack

CHAT = "/v1/chat/completions"


def keys(bus: redis.Redis, kind: str) -> list[str]:
    return sorted(bus.scan_iter(f"tokenbus:{kind}:*", count=1000))


async def start(stack: Stack, *flags: str, slots: int = 1) -> None:
    await stack.gateway(*flags)
    await stack.worker("--model-names", "echo", "--echo-interval-ms", "50", "--limit-worker-concurrency", str(slots))
    await stack.models("echo")


async def test_a_worker_is_a_lease_in_an_index_and_a_name_in_the_catalogue(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    (lease,) = keys(bus, "worker")
    assert lease.startswith("tokenbus:worker:{echo}:")
    assert 0 < bus.pttl(lease) <= 2500
    info = json.loads(bus.get(lease) or "")
    assert {"id", "model", "names", "fingerprint", "engine", "resumable", "state", "slots", "running", "tokens_per_s",
            "version", "started"} <= set(info)  # fmt: skip
    assert bus.zrange("tokenbus:workers:{echo}", 0, -1) == [info["id"]]
    record = json.loads(bus.hget("tokenbus:models", "echo") or "")
    assert (record["model"], record["fingerprint"], record["engine"]) == ("echo", info["fingerprint"], "echo")
    assert 0 < bus.ttl("tokenbus:models") <= 86400


async def test_a_gateway_is_a_lease_with_one_channel(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    (lease,) = keys(bus, "gateway")
    assert 0 < bus.pttl(lease) <= 2500
    gateway = lease.rpartition(":")[2]
    (worker,) = [key.rpartition(":")[2] for key in keys(bus, "worker")]
    assert set(bus.pubsub_channels("tokenbus:*")) == {f"tokenbus:events:{gateway}", f"tokenbus:control:{worker}"}


async def test_jobs_that_wait_and_run_are_the_length_of_a_stream(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    clients = [await Connection.open(stack) for _ in range(3)]
    for client in clients:
        await client.send(chat("a b", stream=True))
    normal = "tokenbus:jobs:{echo}:normal"
    await wait_until(lambda: bus.xlen(normal) == 3, description="one runs, two wait")
    assert bus.xpending(normal, "workers")["pending"] == 1
    (_, fields), *_ = bus.xrange(normal)
    job = json.loads(fields["job"])
    assert {"v", "id", "request", "model", "kind", "payload", "sampling", "gateway", "deadline"} <= set(job)
    assert job["sampling"]["seed"] is not None
    for client in clients:
        client.reset()
    await wait_until(lambda: bus.xlen(normal) == 0, description="nothing is left")


@pytest.mark.parametrize("method", ["shortest_queue", "lottery"])
async def test_an_addressed_job_lies_in_an_inbox(stack: Stack, bus: redis.Redis, method: str) -> None:
    await start(stack, "--dispatch-method", method)
    client = await Connection.open(stack)
    await client.send(chat("a b", stream=True))
    await client.until(b"content")
    (worker,) = [key.rpartition(":")[2] for key in keys(bus, "worker")]
    assert bus.xlen(f"tokenbus:inbox:{{echo}}:{worker}") == 1
    assert bus.xlen("tokenbus:jobs:{echo}:normal") == 0
    client.reset()
    await wait_until(lambda: bus.xlen(f"tokenbus:inbox:{{echo}}:{worker}") == 0, description="it is empty")


async def test_a_cancelled_job_and_its_trace_age(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    client = await Connection.open(stack)
    await client.send(chat("a b", stream=True))
    await client.until(b"content")
    client.reset()
    (cancelled,) = await wait_until(lambda: keys(bus, "cancelled"), description="it is cancelled")
    assert bus.ttl(cancelled) > 600  # outlives the deadline
    trace = cancelled.replace("cancelled", "trace")
    rows = await wait_until(lambda: _said(bus, trace, "cancelled"), description="the trace tells")
    assert {"queued", "claimed"} <= rows
    assert bus.ttl(trace) > 0


def _said(bus: redis.Redis, trace: str, word: str) -> set[str] | None:
    events = {row["event"] for row in json.loads(bus.get(trace) or "{}").get("milestones", ())}
    return events if word in events else None


async def test_the_trace_of_a_job_tells_its_life(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    reply = post(
        stack, CHAT, chat("a b", max_tokens=6)
    ).json()  # two come at once, perhaps before it is said to be queued
    trace = f"tokenbus:trace:{reply['id']}-0"
    rows = await wait_until(lambda: _said(bus, trace, "finished"), description="the trace is written")
    assert {"queued", "claimed", "first_token", "finished"} <= rows


async def test_a_large_prompt_lies_aside_once_while_it_is_needed(stack: Stack, bus: redis.Redis) -> None:
    await start(stack, slots=8)
    client = await Connection.open(stack)
    await client.send(chat("w" * 70_000, n=3, max_tokens=1000))
    (payload,) = await wait_until(lambda: keys(bus, "payload"), description="the payload lies aside")
    assert bus.ttl(payload) > 0
    assert 70_000 < bus.strlen(payload) < 80_000
    assert all(len(fields["job"]) < 2000 for _, fields in bus.xrange("tokenbus:jobs:{echo}:normal"))
    client.reset()
    await wait_until(lambda: not keys(bus, "payload"), description="the payload is gone")


async def test_a_stored_response_has_a_record_a_log_and_an_owner_while_it_runs(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    made = post(stack, "/v1/responses", {"model": "echo", "input": "a b", "max_output_tokens": 9, "background": True})
    id = made.json()["id"]
    record, log, owner = (f"tokenbus:{kind}:{{{id}}}" for kind in ("response", "log", "owner"))
    (gateway,) = [key.rpartition(":")[2] for key in keys(bus, "gateway")]
    assert bus.get(owner) == f"0 {gateway}"
    assert bus.smembers("tokenbus:owners") == {gateway}
    assert bus.smembers(f"tokenbus:owned:{gateway}") == {id}
    assert json.loads(bus.hget(record, "job") or "")["request"] == id
    await wait_until(lambda: bus.hexists(record, "end"), description="it has ended")
    assert json.loads(bus.hget(record, "response") or "")["status"] == "incomplete"
    assert [item["role"] for item in json.loads(bus.hget(record, "items") or "")] == ["user"]
    entries = [fields for _, fields in bus.xrange(log)]
    assert [piece["text"] for fields in entries for piece in json.loads(fields["made"])] == ["a", *[" b", " a"] * 4]
    assert json.loads(entries[-1]["end"])["reason"] == "length"
    assert not bus.hexists(record, "job")
    assert not keys(bus, "owned")
    assert all(bus.pttl(key) > 0 for key in (record, log, owner))


async def test_a_quiet_system_holds_only_what_it_is(stack: Stack, bus: redis.Redis) -> None:
    await start(stack)
    fresh = {key for key in bus.scan_iter("*") if "janitor" not in key}
    for number in range(5):
        assert post(stack, CHAT, chat("a b", max_tokens=2, stream=number % 2 == 0)).status_code == 200
    await wait_until(lambda: len(keys(bus, "trace")) == 5, description="traces are written")
    after = {key for key in bus.scan_iter("*") if "janitor" not in key and "trace" not in key}
    assert after == fresh
