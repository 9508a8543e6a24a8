"""Stored responses outlive gateways, workers and Redis: any gateway tells the same events, from any number on."""

import json
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest
import redis
from openai import APIError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent

from shared.keys import Keys
from tests.conftest import wait_until
from tests.e2e.wire import cycle
from tests.fault.streams import metric, rows, used
from tests.processes import Process, Stack

WORDS = "one two three four five"
FLAGS = ("--model-names", "echo", "--echo-interval-ms", "10")
TOKENS = 300
KEYS = Keys()


class Client:
    """A stored response, as a client reads it that goes to another gateway when one is gone."""

    def __init__(self) -> None:
        self.events: list[ResponseStreamEvent] = []

    @property
    def id(self) -> str:
        response: Response = self.events[0].response  # type: ignore[union-attr]
        return response.id

    @property
    def text(self) -> str:
        return "".join(event.delta for event in self.events if event.type == "response.output_text.delta")

    def read(self, events: Iterator[ResponseStreamEvent], most: int = 100_000) -> None:
        """At most so many events, or until the gateway is gone."""
        try:
            for _, event in zip(range(most), events, strict=False):
                if event.type == "error":  # the gateway says that it leaves
                    return
                self.events.append(event)
        except (APIError, httpx2.TransportError):
            return

    def begin(self, stack: Stack, most: int, **fields: Any) -> Iterator[ResponseStreamEvent]:
        events = iter(sdk(stack).responses.create(**asked(**fields), stream=True))
        self.read(events, most)
        return events

    def go_on(self, stack: Stack, most: int = 100_000) -> None:
        last = self.events[-1].sequence_number
        self.read(iter(sdk(stack).responses.retrieve(self.id, stream=True, starting_after=last)), most)

    def check(self, stack: Stack, tokens: int = TOKENS) -> None:
        """It is whole: each event once, and what is stored is what was told."""
        assert [event.sequence_number for event in self.events] == list(range(len(self.events)))
        assert self.text == cycle(WORDS, tokens)
        last = self.events[-1]
        assert last.type == "response.incomplete"
        assert last.response.usage is not None
        assert last.response.usage.output_tokens == tokens
        assert sdk(stack).responses.retrieve(self.id).to_dict() == last.response.to_dict()


CLIENTS: dict[str, OpenAI] = {}


def sdk(stack: Stack) -> OpenAI:
    if stack.url not in CLIENTS:
        CLIENTS[stack.url] = OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=60)
    return CLIENTS[stack.url]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.popitem()[1].close()


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "echo", "input": WORDS, "max_output_tokens": TOKENS} | fields


def kinds(events: Sequence[ResponseStreamEvent]) -> list[str]:
    return [event.type for event in events]


async def until_ended(stack: Stack, id: str) -> Response:
    def ended() -> Response | None:
        response = sdk(stack).responses.retrieve(id)
        return None if response.status in ("queued", "in_progress") else response

    response: Response = await wait_until(ended, description="the response ended", timeout=60)
    return response


@pytest.fixture
async def doomed(stack: Stack, second: Stack) -> Process:
    """The gateway of `stack`, beside that of `second`, and a worker."""
    doomed = await stack.gateway()
    await second.gateway()
    await stack.worker(*FLAGS)
    await rows(stack, 1)
    return doomed


@pytest.mark.parametrize(("most", "instructions"), [(1, ""), (4, "w" * 70_000), (57, "")])
async def test_a_stream_goes_on_at_another_gateway_when_its_own_is_killed(
    stack: Stack, second: Stack, doomed: Process, most: int, instructions: str
) -> None:
    """Also one whose payload lies aside."""
    client = Client()
    events = client.begin(stack, most, instructions=instructions)
    doomed.kill()
    client.read(events)
    client.go_on(second)
    client.check(second)
    assert await metric(second, "fenced_deltas_total") == 0


async def test_whoever_asks_for_all_of_it_gets_the_same_events(stack: Stack, second: Stack, doomed: Process) -> None:
    client, later = Client(), Client()
    client.begin(stack, 57)
    doomed.kill()
    client.go_on(second)
    later.read(iter(sdk(second).responses.retrieve(client.id, stream=True)))
    assert later.events[: len(client.events)][60:] == client.events[60:]
    assert [event for event in later.events if event not in client.events] == []
    later.check(second)


async def test_a_background_response_is_finished_by_another_gateway(
    stack: Stack, second: Stack, doomed: Process, bus: redis.Redis
) -> None:
    made = sdk(stack).responses.create(**asked(background=True))
    assert made.status == "queued"
    doomed.kill()
    ended = await until_ended(second, made.id)
    assert (ended.output_text, ended.status) == (cycle(WORDS, TOKENS), "incomplete")
    await wait_until(lambda: not list(bus.scan_iter("tokenbus:owned:*")), description="nobody owns anything")


async def test_what_waits_for_a_worker_when_its_gateway_is_killed_runs_once(
    stack: Stack, second: Stack, bus: redis.Redis
) -> None:
    doomed = await stack.gateway()
    await second.gateway()
    worker = await stack.worker(*FLAGS, "--limit-worker-concurrency", "1")
    await rows(stack, 1)
    worker.signal(signal.SIGSTOP)
    ids = [sdk(stack).responses.create(**asked(background=True, max_output_tokens=20)).id for _ in range(3)]
    doomed.kill()
    await wait_until(
        lambda: {bus.get(KEYS.owner(id)).split()[0] for id in ids} >= {"1"},  # type: ignore[union-attr]
        description="all are adopted",
        timeout=20,
    )
    worker.signal(signal.SIGCONT)
    for id in ids:
        assert (await until_ended(second, id)).output_text == cycle(WORDS, 20)
    await wait_until(lambda: used(second, 0), description="nothing runs")
    await wait_until(
        lambda: not any(bus.xlen(stream) for stream in KEYS.job_streams("echo")), description="no entry is left"
    )


async def test_gateway_and_worker_are_killed_at_once(stack: Stack, second: Stack) -> None:
    doomed = await stack.gateway()
    await second.gateway()
    also_doomed = await stack.worker(*FLAGS)
    await rows(stack, 1)
    client = Client()
    client.begin(stack, 57)
    doomed.kill()
    also_doomed.kill()
    await stack.worker(*FLAGS)
    client.go_on(second)
    client.check(second)


async def test_a_worker_is_killed_and_then_the_gateway(stack: Stack, second: Stack) -> None:
    doomed = await stack.gateway()
    await second.gateway()
    also_doomed = await stack.worker(*FLAGS)
    await rows(stack, 1)
    client = Client()
    events = client.begin(stack, 57)
    also_doomed.kill()
    await stack.worker(*FLAGS)
    client.read(events, 60)
    doomed.kill()
    client.read(events)
    client.go_on(second)
    client.check(second)


async def test_gateways_die_one_after_the_other(stack: Stack, second: Stack) -> None:
    await stack.worker(*FLAGS)
    client = Client()
    doomed = await stack.gateway()
    await stack.models("echo")
    client.begin(stack, 20)
    for _ in range(2):
        doomed.kill()
        doomed = await stack.gateway()
        client.go_on(stack, 40)
    client.go_on(stack)
    client.check(stack)


async def test_a_gateway_that_leaves_hands_over_what_it_keeps(stack: Stack, second: Stack) -> None:
    leaving = await stack.gateway("--drain-timeout", "0")
    await second.gateway()
    await stack.worker(*FLAGS)
    await rows(stack, 1)
    client = Client()
    events = client.begin(stack, 57)
    background = sdk(stack).responses.create(**asked(background=True)).id
    assert leaving.terminate() == 0
    client.read(events)
    client.go_on(second)
    client.check(second)
    assert (await until_ended(second, background)).output_text == cycle(WORDS, TOKENS)


async def test_a_stopped_gateway_that_wakes_has_nothing_to_say_any_more(
    stack: Stack, second: Stack, doomed: Process
) -> None:
    client = Client()
    events = client.begin(stack, 57)
    doomed.signal(signal.SIGSTOP)
    other = Client()
    other.events = client.events[:57]
    other.go_on(second)
    other.check(second)
    doomed.signal(signal.SIGCONT)
    client.read(events)
    client.check(stack)


async def test_redis_comes_back_empty_and_the_stream_goes_on(own_stack: Stack, own_redis: Any) -> None:
    await own_stack.gateway()
    await own_stack.worker(*FLAGS)
    await rows(own_stack, 1)
    client = Client()
    events = client.begin(own_stack, 57)
    own_redis.kill()
    own_redis.start()
    client.read(events)
    client.check(own_stack)


async def test_a_response_is_cancelled_at_a_gateway_that_does_not_run_it(
    stack: Stack, second: Stack, doomed: Process
) -> None:
    client = Client()
    events = client.begin(stack, 57, background=True)
    cancelled = sdk(second).responses.cancel(client.id)
    assert cancelled.status == "cancelled"
    await wait_until(lambda: used(stack, 0), description="the slot is free", timeout=3)
    client.read(events)
    last = client.events[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "cancelled"
    assert sdk(stack).responses.retrieve(client.id) == last.response == cancelled
    assert client.text == cancelled.output_text


async def test_a_response_is_deleted_while_another_gateway_runs_it(
    stack: Stack, second: Stack, doomed: Process, bus: redis.Redis
) -> None:
    id = sdk(stack).responses.create(**asked(background=True)).id
    sdk(second).responses.delete(id)
    await wait_until(lambda: used(stack, 0), description="the slot is free", timeout=3)
    await wait_until(lambda: not list(bus.scan_iter("tokenbus:owned:*")), description="nobody owns anything")
    assert not bus.exists(KEYS.response(id), KEYS.log(id))


async def test_a_client_that_leaves_cancels_its_stream_and_not_what_runs_in_the_background(
    stack: Stack, doomed: Process
) -> None:
    with httpx2.Client(base_url=stack.url, timeout=20) as http:
        ids = []
        for background in (False, True):
            body = asked(background=background, stream=True, max_output_tokens=3000)
            with http.stream("POST", "/v1/responses", json=body) as streamed:
                for line in streamed.iter_lines():
                    if line.startswith("data: ") and '"response.output_text.delta"' in line:
                        break
                    if line.startswith("data: ") and '"response.created"' in line:
                        ids.append(json.loads(line[6:])["response"]["id"])
    await wait_until(lambda: used(stack, 1), description="one of them runs on", timeout=5)
    first, other = (sdk(stack).responses.retrieve(id) for id in ids)
    assert (first.status, other.status) == ("cancelled", "in_progress")


async def test_a_stream_whose_log_is_gone_is_told_from_the_record(stack: Stack, bus: redis.Redis) -> None:
    await stack.gateway("--response-ttl", "3600")
    await stack.worker(*FLAGS)
    await rows(stack, 1)
    client, later = Client(), Client()
    client.read(client.begin(stack, 1, max_output_tokens=20))
    assert 0 < bus.pttl(KEYS.log(client.id)) <= 600_000
    assert 0 < bus.pttl(KEYS.response(client.id)) <= 3_600_000
    bus.delete(KEYS.log(client.id))
    later.read(iter(sdk(stack).responses.retrieve(client.id, stream=True)))
    later.check(stack, 20)
    assert len(later.events) < len(client.events)
    with pytest.raises(APIError, match="not kept"):
        sdk(stack).responses.retrieve(client.id, stream=True, starting_after=3)
