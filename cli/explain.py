"""`tokenbus explain REQUEST_ID`: what happened to a recent request, and what is happening to it now."""

import asyncio
import re
import time
from collections.abc import Iterable, Sequence

import msgspec
import orjson
from pydantic import Field
from pydantic_settings import CliPositionalArg, CliToggleFlag
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.bus import BusSettings, on_bus
from cli.letters import read_letters
from cli.story import Story, Surroundings
from registry.directory import take_snapshot
from registry.table import waiting
from shared.connection import Redis
from shared.errors import StartupError
from shared.keys import Keys
from shared.messages import Trace, decode_trace

KINDS = ("chatcmpl-", "cmpl-", "embd-", "msg_", "rerank-", "tokenize-", "detokenize-")  # what a reply's id begins with
PROBED = 128  # jobs of a request that are looked for where the first has aged already
LATE_S = 0.7  # a gateway writes down what happens twice a second


class ExplainSettings(BusSettings):
    """Tell the life of a request: accepted, queued, claimed, first token, attempts, end. For requests that run, and for
    10 minutes after their end; under load of more than 50/s plain successes are kept for 30 s."""

    request_id: CliPositionalArg[str] = Field(
        description="id of a reply (chatcmpl-...), of one of its jobs (chatcmpl-...-0), or its x-request-id"
    )
    json_output: CliToggleFlag[bool] = Field(False, validation_alias="json", description="print a JSON list of traces")


async def run(settings: ExplainSettings) -> None:
    async with on_bus(settings) as (redis, keys):
        traces = await find(redis, keys, settings.request_id)
        around = await look_around(redis, keys, traces)
    if settings.json_output:
        print(orjson.dumps(msgspec.to_builtins(traces), option=orjson.OPT_INDENT_2).decode())
    else:
        show(traces, around, Console())


# -- finding ------------------------------------------------------------------------------------------------------


async def find(redis: Redis, keys: Keys, id: str) -> list[Trace]:
    """The traces that an id means, by job. Raises StartupError if there are none."""
    traces = await _look_up(redis, keys, id)
    if not traces:
        await asyncio.sleep(LATE_S)
        traces = await _look_up(redis, keys, id)
    if not traces:
        raise StartupError(
            f"nothing is known of '{id}'. Ids are those of a reply (chatcmpl-..., cmpl-..., embd-..., msg_...), of its "
            "jobs (...-0), or an x-request-id; they are kept for 10 minutes after the end, under load for 30 s"
        )
    return traces


async def _look_up(redis: Redis, keys: Keys, id: str) -> list[Trace]:
    named = await redis.get(keys.request(id))
    if job := await _read(redis, keys, [id]):
        return job
    for request in requests_meant(id, named.decode(errors="replace") if named else None):
        found = await _read(redis, keys, [f"{request}-{index}" for index in range(PROBED)])
        if found and found[0].jobs > PROBED:
            found = await _read(redis, keys, [f"{request}-{index}" for index in range(found[0].jobs)])
        if found:
            return found
    return []


def requests_meant(id: str, named: str | None) -> list[str]:
    """Ids of replies: the gateway's own x-request-id has the hex of all of them, a client's own was written down."""
    made = re.fullmatch(r"req-([0-9a-f]{32})", id)
    guesses = [f"{kind}{made[1]}" for kind in KINDS] if made else [id]
    return [*([named] if named else []), *guesses]


async def _read(redis: Redis, keys: Keys, jobs: Iterable[str]) -> list[Trace]:
    async with redis.pipeline(transaction=False) as pipe:
        for job in jobs:
            pipe.get(keys.trace(job))
        blobs: list[bytes | None] = await pipe.execute(raise_on_error=False)
    return [trace for blob in blobs if isinstance(blob, bytes) and (trace := _understood(blob))]


def _understood(blob: bytes) -> Trace | None:
    try:
        return decode_trace(blob)
    except msgspec.MsgspecError:
        return None


async def look_around(redis: Redis, keys: Keys, traces: Sequence[Trace]) -> Surroundings:
    """Who of the traces is alive, and what waits where one of them waits."""
    stories = [Story(trace) for trace in traces]
    models = {story.trace.model for story in stories if not story.ended and not story.holder}
    snapshot = await take_snapshot(redis, keys)
    alive = {info.id for workers in snapshot.workers.values() for info in workers}
    for gateway in {trace.gateway for trace in traces}:
        if await redis.exists(keys.gateway(gateway)):
            alive.add(gateway)
    letters = await read_letters(redis, keys) if any(story.may_be_buried for story in stories) else []
    return Surroundings(
        now=int(time.time() * 1000),
        alive=frozenset(alive),
        waiting={model: await waiting(redis, keys, model) for model in models},
        served=frozenset(model for model, workers in snapshot.workers.items() if workers),
        buried=frozenset(letter.job.id for letter in letters if letter.job),
    )


# -- showing ------------------------------------------------------------------------------------------------------


def show(traces: Sequence[Trace], around: Surroundings, console: Console) -> None:
    first = traces[0]
    state = "alive" if first.gateway in around.alive else "gone"
    facts = {"request": first.request, "model": first.model, "gateway": f"{first.gateway} ({state})"}
    for name, value in facts.items():
        _print(console, f"{name:<9}{value}")
    for trace in traces:
        console.print()
        if trace.jobs > 1:
            _print(console, f"job {trace.index + 1} of {trace.jobs}: {trace.job}", "bold")
        story = Story(trace)
        console.print(_table(story))
        _print(console, story.closing(around), "bold")
    if len(traces) > 1 and (missing := first.jobs - len(traces)):
        _print(console, f"\n{missing} of its {first.jobs} jobs are not known any more")


def _print(console: Console, text: str, style: str = "") -> None:
    """As it is: ids are copied, and what is piped is read by line."""
    console.print(Text(text, style), soft_wrap=True)


def _table(story: Story) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("TIME", no_wrap=True)
    table.add_column("+MS", justify="right", no_wrap=True)
    table.add_column("EVENT", overflow="fold")
    for line in story.lines():
        table.add_row(*map(Text, line))
    return table
