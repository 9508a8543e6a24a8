"""`python -m gateway.child`: one of several gateway processes on one port, as gateway.supervisor starts them.

Its stdin brings what it is to do, and then stays open for as long as its parent lives; its stdout takes what the parent
has to know.
"""

import asyncio
import os
import pickle
import socket
import sys

import uvloop

from gateway.metrics import Metrics, forget_process, sum_over_processes
from gateway.orders import LEAVING, READY, Orders
from gateway.server import GatewayServer
from shared.errors import StartupError
from shared.logging import get_logger, set_up_logging

log = get_logger("gateway")

GAUGES_EVERY_S = 0.5
ACCEPTS_WITHIN_S = 2.0
FROM_PARENT, TO_PARENT = 0, 1


class Child:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        sum_over_processes(orders.metrics, orders.number)
        self._metrics = Metrics(orders.metrics)
        # Its siblings may be ready since long, and clients that waited for the one before it should not be sent away.
        self._server = GatewayServer(
            orders.settings, self._metrics, on_leaving=self._say_leaving, accepts_within=ACCEPTS_WITHIN_S
        )
        self._ready = False
        self._orphaned = False

    async def run(self) -> None:
        gateway = self._server.gateway
        log.info("%s is process %d (pid %d)", gateway.hub.id, self._orders.number, os.getpid())
        asyncio.get_running_loop().add_reader(FROM_PARENT, self._hear)
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(self._say_ready(), name="ready"),
                tasks.create_task(self._keep_gauges(), name="gauges"),
            ]
            failure = await self._server.run(socket.socket(fileno=self._orders.listener))
            for task in beside:
                task.cancel()
        if self._orphaned:
            forget_process(self._orders.metrics, self._orders.number)
        if failure:
            raise failure

    def _hear(self) -> None:
        """The end of the pipe: the parent was killed, and nobody else would ever end this process."""
        if not os.read(FROM_PARENT, 1024):
            asyncio.get_running_loop().remove_reader(FROM_PARENT)
            log.warning("process %d has lost its parent and leaves", self._orders.number)
            self._orphaned = True
            self._server.leave()

    async def _say_ready(self) -> None:
        await self._server.gateway.hub.ready()
        self._ready = True
        _tell_parent(READY)

    def _say_leaving(self) -> None:
        if self._ready:  # once is enough
            self._ready = False
            _tell_parent(LEAVING)

    async def _keep_gauges(self) -> None:
        """Whichever process is asked for the metrics reads the gauges of all."""
        while True:
            self._metrics.measure(list(self._server.gateway.hub))
            await asyncio.sleep(GAUGES_EVERY_S)


def _tell_parent(message: bytes) -> None:
    try:
        os.write(TO_PARENT, message)
    except BrokenPipeError:
        log.debug("nobody hears that %r", message)


def main() -> int:
    try:
        orders: Orders = pickle.load(sys.stdin.buffer)
    except EOFError:  # the parent is gone already
        return 1
    try:
        set_up_logging(orders.settings.log_level)
        uvloop.run(Child(orders).run())
    except StartupError as error:
        _tell_parent(f"{error}\n".encode())
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
