"""`python -m gateway`: the HTTP side of the bus."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
import uvloop

from gateway.app import Gateway, create_app
from gateway.connections import Door, that_fit
from gateway.settings import GatewaySettings
from shared.errors import StartupError
from shared.logging import get_logger, set_up_logging

log = get_logger("gateway")


class Server(uvicorn.Server):
    """Tells the gateway when a signal comes: uvicorn only waits for open requests, and some would be long. Nor does it
    raise the signal again at the end, as uvicorn would: a gateway that was asked to leave has done well (exit 0)."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, grace: float) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._grace = grace

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave, number)
        yield

    def _leave(self, number: signal.Signals) -> None:
        self.handle_exit(number, None)  # a second SIGINT forces
        self._gateway.stop(self._grace)


def listen(host: str, port: int) -> socket.socket:
    """What is accepted inherits TCP_NODELAY: asyncio does not set it, since these sockets do not name their protocol,
    and each answer on a kept connection would wait 40 ms for the client's delayed acknowledgement."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise StartupError(f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def serve(settings: GatewaySettings) -> None:
    listener = listen(settings.host, settings.port)
    fatal: list[BaseException] = []

    def on_fatal(error: BaseException) -> None:
        fatal.append(error)
        server.should_exit = True

    gateway = Gateway(
        redis_url=settings.redis_url,
        namespace=settings.namespace,
        dispatch_method=settings.dispatch_method,
        max_queue=settings.max_queue,
        request_timeout=settings.request_timeout,
        stall_timeout=settings.stall_timeout,
        no_worker_timeout=settings.no_worker_timeout,
        default_max_tokens=settings.default_max_tokens,
        on_fatal=on_fatal,
    )
    app = create_app(
        gateway,
        api_keys=settings.api_keys,
        allowed_origins=settings.allowed_origins,
        max_body_bytes=int(settings.max_body_mb * 2**20),
        max_bodies_bytes=int(settings.max_bodies_mb * 2**20),
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        http=Door(that_fit(settings.max_connections)).connection,  # type: ignore[arg-type]
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
    )
    server = Server(config, gateway, settings.drain_timeout)
    log.info("%s listens on http://%s:%d", gateway.hub.id, settings.host, listener.getsockname()[1])
    await server.serve(sockets=[listener])
    if fatal:
        raise fatal[0]


def main() -> int:
    try:
        settings = GatewaySettings.read("python -m gateway", sys.argv[1:])
        set_up_logging(settings.log_level)
        if settings.controller_address is not None:
            log.warning("--controller-address: without meaning here; there is only Redis (--redis-url)")
        uvloop.run(serve(settings))
    except StartupError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
