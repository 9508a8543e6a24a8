"""What stored responses meet besides deaths: what nobody can read, logs that were written again, sleepers, leavers."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from openai.types.responses import ResponseStreamEvent

from shared.messages import encode
from tests.conftest import RedisServer, wait_until
from tests.fault.streams import rows
from tests.fault.test_durable import FLAGS, KEYS, TOKENS, WORDS, Client, _closed, asked, cycle, sdk, until_ended
from tests.integration.bus import make_job
from tests.processes import Process, Stack

__all__ = ["_closed"]

BAD = "resp_" + "0" * 32
NEWER_END = '{"reason":"newer","usage":{"prompt_tokens":1,"completion_tokens":1}}'
UNREADABLE: dict[str, dict[str, Any]] = {
    "response": {"response": "junk"},
    "items": {"items": "junk"},
    "job": {"job": "junk"},
    "end": {"end": NEWER_END},
}


async def heir(stack: Stack) -> tuple[Process, str]:
    """A gateway that looks for responses of dead ones, and one of its own."""
    gateway = await stack.gateway()
    await stack.worker(*FLAGS)
    await rows(stack, 1)
    id = sdk(stack).responses.create(**asked(background=True, max_output_tokens=5)).id
    await until_ended(stack, id)
    return gateway, id


def leave_behind(bus: redis.Redis, like: str, **fields: Any) -> None:
    """A response that a gateway which is gone has owned."""
    stored: Any = bus.hgetall(KEYS.response(like))
    job = make_job(f"{BAD}-0", gateway="gone", logged=0, max_tokens=5)
    record = {"response": stored["response"].replace(like, BAD), "items": stored["items"], "job": encode(job)}
    bus.hset(KEYS.response(BAD), mapping=record | fields)
    bus.expire(KEYS.response(BAD), 600)
    bus.set(KEYS.owner(BAD), "0 gone", ex=600)
    bus.sadd(KEYS.owned("gone"), BAD, b"\xff")
    bus.sadd(KEYS.owners(), "gone")


async def until_inherited(gateway: Process, bus: redis.Redis) -> None:
    def inherited() -> bool:
        assert not gateway.ended, gateway.said()
        return not bus.sismember(KEYS.owners(), "gone") and not bus.exists(KEYS.owned("gone"))

    await wait_until(inherited, description="the heir has looked at it")


@pytest.mark.parametrize("what", UNREADABLE)
async def test_a_record_that_nobody_can_read_is_left_alone(stack: Stack, bus: redis.Redis, what: str) -> None:
    """Of a newer release, perhaps. No gateway dies of it."""
    gateway, id = await heir(stack)
    leave_behind(bus, id, **UNREADABLE[what])
    await until_inherited(gateway, bus)
    with httpx2.Client(base_url=stack.url, timeout=20) as http:
        refused = http.get(f"/v1/responses/{BAD}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "unreadable")


@pytest.mark.parametrize("entry", [{"made": "junk"}, {"made": "[]"}, {"newer": "x"}])
async def test_a_log_that_nobody_can_read_ends_its_response(
    stack: Stack, bus: redis.Redis, entry: dict[Any, Any]
) -> None:
    gateway, id = await heir(stack)
    bus.xadd(KEYS.log(BAD), entry)
    bus.expire(KEYS.log(BAD), 600)
    leave_behind(bus, id)
    await until_inherited(gateway, bus)
    failed = await until_ended(stack, BAD)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "cannot be read" in failed.error.message


async def test_a_follower_is_told_that_a_log_cannot_be_read(stack: Stack, second: Stack, bus: redis.Redis) -> None:
    await stack.gateway()
    gateway = await second.gateway()
    await stack.worker(*FLAGS)
    await rows(stack, 1)
    client = Client()
    client.begin(stack, 5, background=True)
    events = iter(sdk(second).responses.retrieve(client.id, stream=True))
    next(events)
    bus.xadd(KEYS.log(client.id), {"made": "junk"})  # perhaps before its worker added anything
    bus.expire(KEYS.log(client.id), 600)
    (*_, last) = events
    if last.type == "error":  # its owner was quicker, and took the log away
        assert last.code == "stream_lost"
    else:
        assert last.type == "response.failed"
    failed = await until_ended(second, client.id)
    assert failed.error is not None
    assert "cannot be read" in failed.error.message
    assert not gateway.ended, gateway.said()


@pytest.fixture
def far_away(own_stack: Stack, tmp_path: Path) -> Iterator[Stack]:
    """Another gateway over the same Redis."""
    (tmp_path / "far").mkdir()
    stack = Stack(own_stack.redis_url, tmp_path / "far")
    yield stack
    stack.close()


async def begin(stack: Stack, far_away: Stack) -> None:
    await stack.gateway()
    await far_away.gateway()
    await stack.worker(*FLAGS)
    await rows(stack, 1)


async def test_a_log_that_was_written_again_is_not_told_twice(
    own_stack: Stack, far_away: Stack, own_redis: RedisServer
) -> None:
    """By another gateway, as Redis comes back empty."""
    await begin(own_stack, far_away)
    client, far = Client(), Client()
    client.begin(own_stack, 5, background=True)
    events = iter(sdk(far_away).responses.retrieve(client.id, stream=True))
    far.read(events, 57)
    own_redis.kill()
    own_redis.start()
    far.read(events)
    far.check(own_stack)


async def test_what_redis_lost_is_never_called_unknown(
    own_stack: Stack, far_away: Stack, own_redis: RedisServer
) -> None:
    """Its gateway stores it again; until then the other one does not know."""
    await begin(own_stack, far_away)
    id = sdk(own_stack).responses.create(**asked(background=True)).id
    own_redis.kill()
    own_redis.start()
    with httpx2.Client(timeout=20) as http:

        def status(stack: Stack) -> int:
            return http.get(f"{stack.url}/v1/responses/{id}").status_code

        seen = {status(stack) for _ in range(100) for stack in (own_stack, far_away)}
        assert seen <= {200, 503}
        await wait_until(lambda: status(far_away) == 200, description="it is stored again")
        assert http.delete(f"{far_away.url}/v1/responses/{id}").status_code == 200
        for stack in (own_stack, far_away):
            await wait_until(lambda stack=stack: status(stack) == 404, description="it is known to be gone")


async def test_what_redis_lost_outlives_its_gateway_too(
    own_stack: Stack, far_away: Stack, own_redis: RedisServer
) -> None:
    gateway = await own_stack.gateway()
    await far_away.gateway()
    await own_stack.worker(*FLAGS)
    await rows(own_stack, 1)
    client = Client()
    client.begin(own_stack, 5, background=True)
    own_redis.kill()
    own_redis.start()
    with redis.Redis(port=own_redis.port) as bus:
        await wait_until(
            lambda: bus.exists(KEYS.response(client.id)) and bus.xlen(KEYS.log(client.id)) > 1,
            description="it is stored again",
        )
    gateway.kill()
    client.go_on(far_away)
    client.check(far_away)


async def test_a_gateway_that_slept_cancels_nothing_that_another_one_runs(
    stack: Stack, second: Stack, bus: redis.Redis
) -> None:
    """Its client has left meanwhile, to go on at the other one."""
    sleeper = await stack.gateway()
    await second.gateway()
    worker = await stack.worker(*FLAGS)
    await rows(stack, 1)
    with (
        httpx2.Client(base_url=stack.url, timeout=20) as http,
        http.stream("POST", "/v1/responses", json=asked(stream=True)) as streamed,
    ):
        lines = streamed.iter_lines()
        created = next(line for line in lines if line.startswith("data: "))
        id = json.loads(created[6:])["response"]["id"]
        next(line for line in lines if "output_text.delta" in line)
        sleeper.signal(signal.SIGSTOP)
        await wait_until(lambda: bus.get(KEYS.owner(id))[0] != "0", description="adopted", every=0.005)
        worker.signal(signal.SIGSTOP)  # what runs there has to be issued again
    sleeper.signal(signal.SIGCONT)
    await wait_until(lambda: stack._answers("/readyz"), description="the sleeper is awake")
    worker.kill()
    await stack.worker(*FLAGS)
    ended = await until_ended(second, id)
    assert (ended.status, ended.output_text) == ("incomplete", cycle(WORDS, TOKENS))


async def test_a_gateway_that_leaves_tells_those_who_follow_there(stack: Stack, second: Stack) -> None:
    await stack.gateway()
    leaving = await second.gateway("--drain-timeout", "0")
    await stack.worker(*FLAGS)
    await rows(stack, 1)
    client, told = Client(), list[ResponseStreamEvent]()
    client.begin(stack, 5, background=True)
    events = iter(sdk(second).responses.retrieve(client.id, stream=True))
    told.append(next(events))
    leaving.popen.terminate()
    told += events
    assert told[-1].type == "error"
    assert leaving.wait() == 0
    assert "Traceback" not in leaving.said()
