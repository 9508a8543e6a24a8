"""The gateway's lease, renewed by a thread of its own: a body of many megabytes holds the event loop while it is
parsed, and nobody should take the gateway for dead meanwhile. A loop that hangs loses it all the same."""

import asyncio
import threading
import time
from contextlib import suppress

from redis.exceptions import RedisError

from shared.connection import connect_thread
from shared.logging import get_logger
from shared.queue import LEASE_MS, LEASE_RENEW_S, LOOP_HANGS_AFTER_S

log = get_logger(__name__)


class GatewayLease:
    def __init__(self, redis_url: str, key: str) -> None:
        self._url = redis_url
        self._key = key
        self._beat_at = time.monotonic()
        self._stop = threading.Event()
        self.taken = asyncio.Event()  # before that nothing may be submitted: its worker would take the gateway for dead

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._renew, args=[loop], name="lease", daemon=True).start()
        try:
            while True:
                self._beat_at = time.monotonic()
                await asyncio.sleep(LEASE_RENEW_S)
        finally:
            self.stop()

    def stop(self) -> None:
        """Idempotent; the key goes with its time."""
        self._stop.set()

    def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        client = connect_thread(self._url)
        while not self._stop.is_set():
            try:
                if time.monotonic() - self._beat_at < LOOP_HANGS_AFTER_S:
                    client.set(self._key, str(int(time.time())), px=LEASE_MS)
                    self._say_taken(loop)
            except (RedisError, OSError) as error:
                log.warning("the gateway's lease could not be renewed: %s", error)
            self._stop.wait(LEASE_RENEW_S)
        client.close()

    def _say_taken(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self.taken.is_set():
            with suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(self.taken.set)
