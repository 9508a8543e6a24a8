"""The one way to Redis, and how everybody waits for it."""

import asyncio
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from shared.errors import StartupError
from shared.line import Line, Subscription
from shared.logging import get_logger

log = get_logger(__name__)

Redis = Any  # redis.asyncio.Redis: its reply types are unions over protocols and modes that we pin
BUS_ERRORS: tuple[type[BaseException], ...] = (RedisError, OSError, asyncio.TimeoutError)
MAX_CONNECTIONS = 64  # further commands wait for one; the library's own pool would raise instead
ANSWERED_WITHIN_S = 10.0  # else the link is taken for dead: one that was cut in silence would hold its user for ever
SUBSCRIBE_AGAIN_S = 0.2
PING_AFTER_S, DEAF_AFTER_S = 2.0, 6.0  # of silence on a subscription


class Bus(redis.asyncio.Redis):
    """redis-py's client, and two lines for what is done per request and per step: on `line` everybody's commands
    follow each other, `reading` may be held by one blocking read, of less than ANSWERED_WITHIN_S."""

    def __init__(self, pool: redis.asyncio.ConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self.line = Line(self.dial, ANSWERED_WITHIN_S)
        self.reading = Line(self.dial, ANSWERED_WITHIN_S)

    async def dial(self) -> Any:
        """A connection of its own, which nobody closes for the caller."""
        connection: Any = self.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        return connection

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        self.line.close()
        self.reading.close()
        await super().aclose(close_connection_pool)


def connect(url: str) -> Bus:
    """A client for the event loop. A command is sent once: a silent retry could enqueue a job twice."""
    try:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=None,
            socket_timeout=None,  # see _bounded
            socket_connect_timeout=5,
            socket_keepalive=True,
            retry=AsyncRetry(NoBackoff(), 0),
            protocol=2,  # XREADGROUP answers a list in RESP2 and a dict in RESP3
        )
    except ValueError as error:
        raise StartupError(f"--redis-url: {error}") from None
    pool.connection_class = _bounded(pool.connection_class)
    return Bus(pool)


def _bounded(connection_class: Any) -> Any:
    """Gives up on a command that is not answered. The library's own `socket_timeout` goes through asyncio.wait_for,
    which on Python 3.11 now and then swallows the cancellation of its caller."""

    class Bounded(connection_class):  # type: ignore[misc]
        async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                await super().send_packed_command(*args, **kwargs)

        async def read_response(self, *args: Any, **kwargs: Any) -> Any:
            own = kwargs.get("timeout") is not None  # a subscription waits as long as it likes
            async with asyncio.timeout(None if own else ANSWERED_WITHIN_S):
                return await super().read_response(*args, **kwargs)

    return Bounded


def connect_thread(url: str) -> Any:
    """A client for one thread, with timeouts: whoever holds a lease must notice when it cannot renew it."""
    return redis.Redis.from_url(
        url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0), protocol=2
    )


def describe(url: str) -> str:
    """The address without the password, for messages."""
    return url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")


def is_passing(error: BaseException) -> bool:
    """Redis is away or loading its data; a wrong password will not get better by waiting."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return False
    if isinstance(error, ResponseError) and not isinstance(error, MasterDownError | ReadOnlyError):
        return str(error).startswith("BUSY ")
    return isinstance(error, BUS_ERRORS)


async def wait_for_redis(client: Redis, url: str) -> None:
    """Returns once Redis answers; says on the way what it waits for. Raises StartupError for a wrong password."""

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("waiting for Redis at %s: %s", describe(url), error)

    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=0.5, min=0.1, max=5),
            before_sleep=say,
        ):
            with attempt:
                await client.ping()
    except RedisError as error:
        raise StartupError(f"Redis at {describe(url)} refused: {error}") from None


class Hearing(asyncio.Event):
    """Set while a channel is heard; `began` counts how often that came to be."""

    began = 0

    def set(self) -> None:
        self.began += 1
        super().set()


async def listen(bus: Bus, channel: str, receive: Callable[[bytes], None], hearing: Hearing) -> None:
    """Until cancelled, through every loss of the connection. What is published meanwhile is gone; only the caller knows
    what that means."""
    while True:
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                subscription = Subscription(await bus.dial(), channel, receive, PING_AFTER_S, DEAF_AFTER_S)
            try:
                async with asyncio.timeout(ANSWERED_WITHIN_S):
                    await subscription.begun
                hearing.set()
                await subscription.ended
            finally:
                subscription.close()
        except BUS_ERRORS as error:
            log.warning("channel %s lost: %s", channel, error)
            if not hearing.is_set():
                await asyncio.sleep(SUBSCRIBE_AGAIN_S)
            hearing.clear()
