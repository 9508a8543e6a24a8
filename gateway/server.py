"""One gateway process: uvicorn in front of the parts that are on the bus, from its start to the end of its drain."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from gateway.app import Gateway, create_app
from gateway.connections import Door, that_fit
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings


class Server(uvicorn.Server):
    """Tells the gateway when a signal comes: uvicorn only waits for open requests, and some would be long. Nor does it
    raise the signal again at the end, as uvicorn would: a gateway that was asked to leave has done well (exit 0)."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, grace: float, on_leaving: Callable[[], None]) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._grace = grace
        self._on_leaving = on_leaving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.leave, number)
        yield

    def leave(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.handle_exit(number, None)  # a second SIGINT forces
        self._gateway.stop(self._grace)
        self._on_leaving()


def configured(gateway: Gateway, settings: GatewaySettings) -> uvicorn.Config:
    app = create_app(
        gateway,
        api_keys=settings.api_keys,
        allowed_origins=settings.allowed_origins,
        max_body_bytes=int(settings.max_body_mb * 2**20),
        max_bodies_bytes=int(settings.max_bodies_mb * 2**20),
    )
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        http=Door(that_fit(settings.max_connections)).connection,  # type: ignore[arg-type]
        ws="none",
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
    )


class GatewayServer:
    """A gateway and its server, made of the settings. `on_leaving` is called before it stops to accept. Connections are
    accepted once it is on the bus, or after `accepts_within` seconds without."""

    def __init__(
        self,
        settings: GatewaySettings,
        metrics: Metrics,
        *,
        on_leaving: Callable[[], None] = lambda: None,
        accepts_within: float = 0.0,
    ) -> None:
        self._on_leaving = on_leaving
        self._fatal: list[BaseException] = []
        self.gateway = Gateway(
            redis_url=settings.redis_url,
            namespace=settings.namespace,
            dispatch_method=settings.dispatch_method,
            max_queue=settings.max_queue,
            request_timeout=settings.request_timeout,
            stall_timeout=settings.stall_timeout,
            no_worker_timeout=settings.no_worker_timeout,
            default_max_tokens=settings.default_max_tokens,
            response_ttl=settings.response_ttl,
            aliases=settings.aliases,
            metrics=metrics,
            on_fatal=self._on_fatal,
            accepts_within=accepts_within,
        )
        self._server = Server(configured(self.gateway, settings), self.gateway, settings.drain_timeout, on_leaving)

    def _on_fatal(self, error: BaseException) -> None:
        self._fatal.append(error)
        self._server.should_exit = True
        self._on_leaving()

    async def run(self, listener: socket.socket) -> BaseException | None:
        """Until it was told to leave and has drained, or until a part of it died: then what killed it."""
        await self._server.serve(sockets=[listener])
        return self._fatal[0] if self._fatal else None

    def leave(self) -> None:
        """As SIGTERM."""
        self._server.leave()
