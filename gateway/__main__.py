"""`python -m gateway`: the HTTP side of the bus."""

import asyncio
import sys
from socket import socket

import uvloop

from gateway.listener import listen
from gateway.settings import GatewaySettings
from gateway.supervisor import Supervisor
from shared.errors import StartupError
from shared.garbage import spare_what_is_loaded
from shared.logging import get_logger, set_up_logging

log = get_logger("gateway")


async def serve(settings: GatewaySettings, listener: socket) -> None:
    from gateway.metrics import Metrics  # not above: the parent of several processes needs none of it
    from gateway.server import GatewayServer

    server = GatewayServer(settings, Metrics())
    spare_what_is_loaded()
    log.info("%s listens on %s", server.gateway.hub.id, address(settings, listener))
    if failure := await server.run(listener):
        raise failure


async def supervise(settings: GatewaySettings, listeners: list[socket]) -> None:
    log.info("%d processes listen on %s", len(listeners), address(settings, listeners[0]))
    await Supervisor(settings, listeners).run()


def address(settings: GatewaySettings, listener: socket) -> str:
    return f"http://{settings.host}:{listener.getsockname()[1]}"


def main() -> int:
    try:
        settings = GatewaySettings.read("python -m gateway", sys.argv[1:])
        set_up_logging(settings.log_level)
        if settings.controller_address is not None:
            log.warning("--controller-address: without meaning here; there is only Redis (--redis-url)")
        listeners = listen(settings.host, settings.port, settings.workers)
        if settings.workers == 1:
            uvloop.run(serve(settings, listeners[0]))
        else:
            asyncio.run(supervise(settings, listeners))
    except StartupError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
