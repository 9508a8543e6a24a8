"""The one way to Redis, and how everybody waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError
from redis.retry import Retry
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from shared.errors import StartupError
from shared.logging import get_logger

log = get_logger(__name__)

Redis = Any  # redis.asyncio.Redis: its reply types are unions over protocols and modes that we pin
BUS_ERRORS: tuple[type[BaseException], ...] = (RedisError, OSError, asyncio.TimeoutError)
MAX_CONNECTIONS = 64  # further commands wait for one; the library's own pool would raise instead


def connect(url: str) -> Redis:
    """A client for the event loop. A command is sent once: a silent retry could enqueue a job twice, and the
    library's default read timeout ends a blocking read that is only waiting."""
    try:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=5,
            socket_keepalive=True,
            retry=AsyncRetry(NoBackoff(), 0),
            protocol=2,  # XREADGROUP answers a list in RESP2 and a dict in RESP3
        )
    except ValueError as error:
        raise StartupError(f"--redis-url: {error}") from None
    return redis.asyncio.Redis.from_pool(pool)


def connect_thread(url: str) -> Any:
    """A client for one thread, with timeouts: whoever holds a lease must notice when it cannot renew it."""
    return redis.Redis.from_url(
        url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0), protocol=2
    )


def describe(url: str) -> str:
    """The address without the password, for messages."""
    return url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")


def _is_passing(error: BaseException) -> bool:
    """Redis is away or loading its data; a wrong password will not get better by waiting."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return False
    if isinstance(error, ResponseError):
        return str(error).startswith(("LOADING", "BUSY", "MASTERDOWN"))
    return isinstance(error, BUS_ERRORS)


async def wait_for_redis(client: Redis, url: str) -> None:
    """Returns once Redis answers; says on the way what it waits for. Raises StartupError for a wrong password."""

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("waiting for Redis at %s: %s", describe(url), error)

    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_is_passing),
            wait=wait_random_exponential(multiplier=0.5, min=0.1, max=5),
            before_sleep=say,
        ):
            with attempt:
                await client.ping()
    except RedisError as error:
        raise StartupError(f"Redis at {describe(url)} refused: {error}") from None


@asynccontextmanager
async def subscribed(client: Redis, channel: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The payloads published on `channel`, from the moment the block is entered. A lost connection raises: what was
    published meanwhile is gone, and only the caller knows what that means."""
    async with client.pubsub(ignore_subscribe_messages=False) as pubsub:
        await pubsub.subscribe(channel)
        while (message := await pubsub.get_message(timeout=5)) is None or message["type"] != "subscribe":
            if message is None:
                raise TimeoutError("no answer to SUBSCRIBE")
        yield _payloads(pubsub)


async def _payloads(pubsub: Any) -> AsyncIterator[bytes]:
    async for message in pubsub.listen():
        if message["type"] == "message":
            yield message["data"]
