"""`python -m registry`: the live table of workers; `--json` once; `--alive ID` as a health check."""

import asyncio
import sys

import orjson
from pydantic import Field
from redis.exceptions import RedisError
from rich.console import Console
from rich.live import Live

from registry.directory import take_snapshot
from registry.table import render, rows
from shared.connection import Redis, connect, describe
from shared.errors import StartupError
from shared.keys import Keys
from shared.logging import set_up_logging
from shared.settings import ProcessSettings


class RegistrySettings(ProcessSettings):
    """Who is alive on the bus. On a terminal the table stays up to date; elsewhere it is printed once."""

    json_output: bool = Field(False, validation_alias="json", description="print a JSON list of objects, once")
    once: bool = Field(False, description="print the table once, also on a terminal")
    alive: str | None = Field(None, description="exit 0 if the worker of this id (or host name) lives, else 1")


async def is_alive(redis: Redis, keys: Keys, worker: str) -> bool:
    """By whole id, or by the host that begins it: a container knows its own host name."""
    snapshot = await take_snapshot(redis, keys)
    ids = [info.id for workers in snapshot.workers.values() for info in workers]
    return any(worker in (id, id.rpartition("-")[0]) for id in ids)


async def watch(redis: Redis, keys: Keys, console: Console) -> None:
    with Live(render(await rows(redis, keys)), console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(0.5)
            live.update(render(await rows(redis, keys)), refresh=True)


async def run(settings: RegistrySettings) -> int:
    redis, keys, console = connect(settings.redis_url), Keys(settings.namespace), Console()
    try:
        if settings.alive is not None:
            return 0 if await is_alive(redis, keys, settings.alive) else 1
        if settings.json_output:
            print(orjson.dumps(await rows(redis, keys), option=orjson.OPT_INDENT_2).decode())
        elif settings.once or not console.is_terminal:
            console.print(render(await rows(redis, keys)))
        else:
            await watch(redis, keys, console)
        return 0
    except (RedisError, OSError) as error:
        raise StartupError(f"Redis at {describe(settings.redis_url)}: {error}") from None
    finally:
        await redis.aclose()


def main() -> int:
    try:
        settings = RegistrySettings.read("python -m registry", sys.argv[1:])
        set_up_logging(settings.log_level)
        return asyncio.run(run(settings))
    except StartupError as error:
        print(f"registry: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
