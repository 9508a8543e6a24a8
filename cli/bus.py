"""How a command reaches the bus: the Redis that was named, or the one of `tokenbus up`. Its trouble is one line."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import AliasChoices, Field
from redis.exceptions import RedisError

from cli.valkey import find_redis_url
from shared.connection import Redis, connect, describe
from shared.errors import StartupError
from shared.keys import Keys
from shared.settings import ProcessSettings


class BusSettings(ProcessSettings):
    """What every command takes that looks at the bus."""

    redis_url: str = Field(
        "",
        validation_alias=AliasChoices("redis_url", "TOKENBUS_REDIS_URL"),
        description="environment REDIS_URL; default: the server that `tokenbus up` started",
    )


@asynccontextmanager
async def on_bus(settings: BusSettings) -> AsyncIterator[tuple[Redis, Keys]]:
    """Raises StartupError where Redis is away or refuses."""
    url = find_redis_url(settings.redis_url)
    redis = connect(url)
    try:
        yield redis, Keys(settings.namespace)
    except (RedisError, OSError) as error:
        raise StartupError(f"Redis at {describe(url)}: {error}") from None
    finally:
        await redis.aclose()


def count(number: int, noun: str) -> str:
    """`1 stream`, `2 streams`, `2 crashes`."""
    plural = f"{noun}es" if noun.endswith("sh") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
