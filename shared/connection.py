"""The one way to Redis, and how everybody waits for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
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
ANSWERED_WITHIN_S = 10.0  # else the link is taken for dead: one that was cut in silence would hold its user for ever
SUBSCRIBE_AGAIN_S = 0.2
PING_AFTER_S, DEAF_AFTER_S = 2.0, 6.0  # of silence on a subscription


def connect(url: str) -> Redis:
    """A client for the event loop. A command is sent once: a silent retry could enqueue a job twice. A blocking read
    must ask for less than ANSWERED_WITHIN_S."""
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
    return redis.asyncio.Redis.from_pool(pool)


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
        ears = _Ears(pubsub)
        watch = asyncio.create_task(ears.cut_when_deaf(), name=f"ears of {channel}")
        try:
            yield ears.payloads()
        finally:
            watch.cancel()


class Hearing(asyncio.Event):
    """Set while a channel is heard; `began` counts how often that came to be."""

    began = 0

    def set(self) -> None:
        self.began += 1
        super().set()


async def listen(client: Redis, channel: str, receive: Callable[[bytes], None], hearing: Hearing) -> None:
    """Until cancelled, through every loss of the connection. What is published meanwhile is gone."""
    while True:
        try:
            async with subscribed(client, channel) as messages:
                hearing.set()
                async for message in messages:
                    receive(message)
        except BUS_ERRORS as error:
            log.warning("channel %s lost: %s", channel, error)
            if not hearing.is_set():
                await asyncio.sleep(SUBSCRIBE_AGAIN_S)
            hearing.clear()


class _Ears:
    """A subscription that notices when its link is dead: nobody would tell it, since it only listens."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub
        self._heard_at = time.monotonic()

    async def payloads(self) -> AsyncIterator[bytes]:
        async for message in self._pubsub.listen():
            self._heard_at = time.monotonic()
            if message["type"] == "message":
                yield message["data"]

    async def cut_when_deaf(self) -> None:
        """Beside `payloads`, which a cut ends with an error."""
        while True:
            await asyncio.sleep(PING_AFTER_S / 2)
            silent = time.monotonic() - self._heard_at
            try:
                if silent > DEAF_AFTER_S:
                    await self._pubsub.connection.disconnect(nowait=True)
                elif silent > PING_AFTER_S:
                    await self._pubsub.ping()
            except BUS_ERRORS:
                return  # `payloads` meets it too
