"""`tokenbus ps`: who is alive on the bus, once."""

import orjson
from pydantic import AliasChoices, Field
from redis.exceptions import RedisError
from rich.console import Console

from cli.valkey import find_redis_url
from registry.table import render, rows
from shared.connection import connect, describe
from shared.errors import StartupError
from shared.keys import Keys
from shared.settings import ProcessSettings


class PsSettings(ProcessSettings):
    """Print the table of living workers. `python -m registry` keeps it up to date."""

    redis_url: str = Field(
        "",
        validation_alias=AliasChoices("redis_url", "TOKENBUS_REDIS_URL"),
        description="environment REDIS_URL; default: the server that `tokenbus up` started",
    )
    json_output: bool = Field(False, validation_alias="json", description="print a JSON list of objects")


async def run(settings: PsSettings) -> None:
    url = find_redis_url(settings.redis_url)
    redis, keys = connect(url), Keys(settings.namespace)
    try:
        found = await rows(redis, keys)
    except (RedisError, OSError) as error:
        raise StartupError(f"Redis at {describe(url)}: {error}") from None
    finally:
        await redis.aclose()
    if settings.json_output:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        Console().print(render(found))
