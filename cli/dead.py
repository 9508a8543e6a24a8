"""`tokenbus dead`: lists, shows, runs again and removes the jobs that were given up."""

import sys
from typing import Any

import msgspec
import orjson
from pydantic import Field
from pydantic_settings import CliPositionalArg, CliToggleFlag
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.bus import BusSettings, count, on_bus
from cli.letters import Letter, Payloads, clock, find, printable, prompt_lines, read_letters, remove
from cli.requeue import requeue
from cli.valkey import find_redis_url
from shared.connection import Redis
from shared.errors import StartupError
from shared.keys import Keys
from shared.logging import set_up_logging
from shared.messages import Job

GONE = "(the prompt is gone: a large one is kept for 24 h)"


class DeadSettings(BusSettings):
    """List the jobs that were given up after three workers died on them; with JOB show one of them whole."""

    job: CliPositionalArg[str | None] = Field(None, description="a job's, request's or entry's id; default: list all")
    requeue: CliToggleFlag[bool] = Field(
        False, description="run it once more, alone; its text comes here. It is removed if it finishes"
    )
    remove: CliToggleFlag[bool] = Field(False, description="remove it")
    timeout: float = Field(600.0, gt=0, description="s that --requeue may take")
    json_output: CliToggleFlag[bool] = Field(False, validation_alias="json", description="print JSON")
    log_level: str = Field("warning", pattern="(?i)^(debug|info|warning|error)$", description="of --requeue")


async def run(settings: DeadSettings) -> int:
    set_up_logging(settings.log_level)
    if settings.requeue and settings.remove:
        raise StartupError("--requeue and --remove: give one of them")
    if settings.job is None and (settings.requeue or settings.remove):
        raise StartupError("say which one: tokenbus dead JOB " + ("--requeue" if settings.requeue else "--remove"))
    async with on_bus(settings) as (redis, keys):
        letters = await read_letters(redis, keys)
        if settings.job is None:
            said = await _list(letters, Payloads(redis, keys), settings.json_output)
        else:
            letter = find(settings.job, letters)
            if settings.requeue:
                url = find_redis_url(settings.redis_url)
                return await requeue(redis, url, keys, letter, settings.timeout)
            said = await (_remove if settings.remove else _show)(redis, keys, letter, settings.json_output)
    if isinstance(said, Table):
        Console().print(said)
    else:
        sys.stdout.write(said + "\n")
    return 0


async def _remove(redis: Redis, keys: Keys, letter: Letter, _: bool) -> str:
    await remove(redis, keys, letter)
    return f"removed {letter.job.id if letter.job else letter.entry}"


# -- all of them --------------------------------------------------------------------------------------------------


async def _list(letters: list[Letter], payloads: Payloads, as_json: bool) -> Table | str:
    prompts = [await payloads.beginning(letter.job) if letter.job else "" for letter in letters]
    if as_json:
        rows = [_facts(letter) | {"prompt": prompt} for letter, prompt in zip(letters, prompts, strict=True)]
        return orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode()
    return _table(letters, prompts) if letters else "no dead letters"


def _facts(letter: Letter) -> dict[str, Any]:
    job = letter.job
    return {
        "entry": letter.entry,
        "buried_at": letter.buried_at,
        "model": letter.model,
        "id": job.id if job else None,
        "request": job.request if job else None,
        "kind": job.kind if job else None,
        "crashes": letter.crashes,
        "reason": letter.reason,
        "workers": letter.workers,
    }


def _table(letters: list[Letter], prompts: list[str]) -> Table:
    """Three lines a letter, so that ids can be copied from a terminal of 80 columns."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("BURIED", "JOB", "WHY"):
        table.add_column(title, overflow="fold")
    for letter, prompt in zip(letters, prompts, strict=True):
        job = letter.job
        what = [clock(letter.buried_at), letter.model, job.kind if job else "?"]
        which = [job.id if job else "(not readable)", f"entry {letter.entry}", prompt]
        why = [letter.reason, count(letter.crashes, "crash"), *letter.workers]
        if table.row_count:
            table.add_row()
        table.add_row(*(Text(printable("\n".join(lines))) for lines in (what, which, why)))
    return table


# -- one of them --------------------------------------------------------------------------------------------------


async def _show(redis: Redis, keys: Keys, letter: Letter, as_json: bool) -> str:
    job = letter.job
    if job is None:
        return f"entry {letter.entry} of '{letter.model}' is not readable; --remove takes it away"
    payload = await Payloads(redis, keys).of(job)
    whole = msgspec.to_builtins(job)
    if as_json:
        return orjson.dumps(_facts(letter) | {"job": whole, "payload": payload}, option=orjson.OPT_INDENT_2).decode()
    del whole["payload"], whole["resume"]  # told in other words, which take fewer lines
    prompt = GONE if payload is None else "\n".join(prompt_lines(payload))
    return "\n\n".join([_head(letter, job), orjson.dumps(whole, option=orjson.OPT_INDENT_2).decode(), prompt])


def _head(letter: Letter, job: Job) -> str:
    made = len(job.resume.token_ids) if job.resume else 0
    facts = {
        "job": job.id,
        "entry": letter.entry,
        "buried": clock(letter.buried_at),
        "model": letter.model,
        "why": f"{letter.reason}, {count(letter.crashes, 'crash')}",
        "workers": ", ".join(letter.workers) or "not known",
        "made": count(made, "token"),
    }
    return "\n".join(f"{name:<9}{printable(value)}" for name, value in facts.items())
