"""`python -m gateway`: the HTTP side of the bus."""

import asyncio
import signal
import sys
from types import FrameType

import uvicorn

from gateway.app import Gateway, create_app
from gateway.settings import GatewaySettings
from shared.errors import StartupError
from shared.logging import get_logger, set_up_logging

log = get_logger("gateway")


class Server(uvicorn.Server):
    """Tells the gateway when a signal comes: uvicorn only waits for open requests, and some would be long."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, grace: float) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._grace = grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        asyncio.get_running_loop().call_soon_threadsafe(self._gateway.stop, self._grace)


async def serve(settings: GatewaySettings) -> None:
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
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
    )
    server = Server(config, gateway, settings.drain_timeout)
    await server.serve()
    if fatal:
        raise fatal[0]


def main() -> int:
    try:
        settings = GatewaySettings.read("python -m gateway", sys.argv[1:])
        set_up_logging(settings.log_level)
        if settings.controller_address is not None:
            log.warning("--controller-address: without meaning here; there is only Redis (--redis-url)")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asyncio.run(serve(settings))
    except StartupError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
