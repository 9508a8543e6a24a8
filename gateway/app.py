"""The FastAPI application: routes, errors in their shape, and the tasks that live as long as it does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import OutOfMemoryError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from gateway.aliases import Aliases
from gateway.anthropic.endpoints import message_endpoints
from gateway.bodies import Bodies
from gateway.client import Client
from gateway.demand import Demand
from gateway.description.document import describe
from gateway.endpoints import Accepted, generation_endpoints
from gateway.front import Front
from gateway.generate import Generator
from gateway.hub import Hub
from gateway.inflight import ClientGone
from gateway.lease import GatewayLease
from gateway.listing import add_models
from gateway.memory import MemoryBrake, bus_full
from gateway.metrics import Metrics
from gateway.queries import invalid_query
from gateway.refusals import refusal
from gateway.replies import error_response, json_response
from gateway.responses.endpoints import add_stored_responses, response_endpoints
from gateway.responses.followers import Followers
from gateway.responses.keeper import Keeper
from gateway.responses.records import Records
from gateway.responses.service import Responses
from gateway.results import result_endpoints
from gateway.watch import Watch
from registry.directory import Directory
from registry.janitor import Janitor
from shared import __version__
from shared.connection import BUS_ERRORS, Bus, connect, wait_for_redis
from shared.errors import (
    BusUnavailable,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ShuttingDown,
    TokenbusError,
)
from shared.keys import Keys
from shared.logging import get_logger
from shared.messages import new_process_id
from shared.queue import DispatchMethod

log = get_logger(__name__)

READY_WITHIN_S = 1.0
ACCEPTED_WITHIN_S = 5.0  # a Redis that is stopped, or behind a dead link, answers nothing and raises nothing


class Gateway:
    """The parts of one gateway process, and their start and end."""

    def __init__(
        self,
        *,
        redis_url: str,
        namespace: str,
        dispatch_method: DispatchMethod,
        max_queue: int,
        request_timeout: float,
        stall_timeout: float,
        no_worker_timeout: float,
        default_max_tokens: int | None,
        response_ttl: float,
        aliases: Mapping[str, Mapping[str, float]],
        metrics: Metrics,
        on_fatal: Callable[[BaseException], None],
        accepts_within: float = 0.0,
    ) -> None:
        self.redis: Bus = connect(redis_url)
        self._redis_url = redis_url
        self._on_fatal = on_fatal
        self._accepts_within = accepts_within
        self.metrics = metrics
        self.stopping = False
        self.request_timeout = request_timeout
        keys, id = Keys(namespace), new_process_id()
        self.hub = Hub(self.redis, keys, id, self.metrics, max_queue, dispatch_method)
        self.directory = Directory(self.redis, keys)
        self.aliases = Aliases(aliases)
        self._demand = Demand(self.redis, keys, self.directory, max_queue)
        self._brake = MemoryBrake(self.redis)
        self.generator = Generator(self.hub, self.directory, self._brake, default_max_tokens)
        records = Records(self.redis, keys, int(response_ttl * 1000))
        self._followers = Followers(self.redis, keys, records)
        self._keeper = Keeper(self.redis, keys, self.hub, records, self._followers)
        self.responses = Responses(self.generator, self.hub, self._keeper, self._followers)
        self._watch = Watch(
            self.redis, keys, self.hub, self.directory, self._demand, self.metrics, stall_timeout, no_worker_timeout
        )
        self._janitor = Janitor(self.redis, keys, id)
        self._lease = GatewayLease(redis_url, keys.gateway(id))

    async def run(self) -> None:
        """Until cancelled. A part that dies takes the process with it: no half-dead gateways."""
        try:
            await wait_for_redis(self.redis, self._redis_url)
            async with asyncio.TaskGroup() as tasks:
                for part in (
                    self._lease,
                    self.hub,
                    self.directory,
                    self._demand,
                    self._brake,
                    self._watch,
                    self._janitor,
                    self._keeper,
                    self._followers,
                ):
                    tasks.create_task(part.run(), name=type(part).__name__)
        except Exception as error:
            self._on_fatal(error)

    async def _is_on_bus(self) -> None:
        await self.hub.ready()
        await self._lease.taken.wait()

    async def is_ready(self) -> bool:
        if self.stopping or not self.hub.is_subscribed or not self._lease.taken.is_set():
            return False
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                return bool(await self.redis.ping())
        except BUS_ERRORS:
            return False

    def stop(self, grace: float) -> None:
        """Accept nothing more; what is open has `grace` seconds, then it fails with an error of its own."""
        if not self.stopping:
            self.stopping = True
            error = ShuttingDown("The server is shutting down; try again.", retry_after=1)
            asyncio.get_running_loop().call_later(grace, self._fail_all, error)

    def _fail_all(self, error: TokenbusError) -> None:
        self.hub.fail_all(error)
        self._demand.fail_all(error)
        self._followers.fail_all(error)

    async def accept(self, act: Callable[[], Awaitable[Accepted]]) -> Accepted:
        """What a request meets on its way in: a gateway that leaves, a queue that is full, a bus that is away."""
        try:
            self._check_open()
            async with asyncio.timeout(ACCEPTED_WITHIN_S):
                return await act()
        except OutOfMemoryError:
            refusal: TokenbusError = bus_full()
        except BUS_ERRORS as error:
            log.warning("a request was not accepted: %r", error)
            refusal = BusUnavailable("The message bus is unavailable; try again.", retry_after=2)
        except RecursionError:  # orjson reads deeper nesting than msgspec writes
            refusal = InvalidRequest("The request body is nested too deeply.")
        except TokenbusError as error:
            refusal = error
        self.metrics.refused.labels("", refusal.code).inc()
        raise refusal

    def _check_open(self) -> None:
        if self.stopping:
            raise ShuttingDown("The server is shutting down; try again.", retry_after=1)
        if not self._lease.taken.is_set():
            raise BusUnavailable("The message bus is not reached yet; try again.", retry_after=2)

    def is_there(self, name: str) -> bool:
        """Somebody serves it, or would load it."""
        snapshot = self.directory.snapshot
        loadable = snapshot.loadable.get(name)
        return snapshot.is_live(name) or (loadable is not None and loadable.state != "failed")

    async def route(self, name: str, user: str | None, client: Client) -> str:
        """The model that a request for `name` goes to, once it is there. Raises ModelLoading if it is still being
        loaded after a minute, QueueFull, and ClientGone."""
        model = self.aliases.choose(name, user, self.is_there)
        if not self.is_there(model):
            await self.directory.look()  # it may have come since
        live = self._demand.until_live(model)
        if not live.done():
            await self._wait_for_load(live, client)
        try:
            live.result()
        except TokenbusError as refusal:
            self.metrics.refused.labels("", refusal.code).inc()
            raise
        return model

    async def _wait_for_load(self, live: "asyncio.Future[None]", client: Client) -> None:
        def leave() -> None:
            live.cancel()

        self._check_open()
        client.watch(leave)
        try:
            await asyncio.wait({live})
        finally:
            client.unwatch(leave)
            leave()
        if live.cancelled():
            raise ClientGone

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(self.run(), name="gateway")
        on_bus = asyncio.create_task(self._is_on_bus(), name="on the bus")
        try:
            await asyncio.wait({running, on_bus}, timeout=self._accepts_within, return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            self._lease.stop()
            await self.hub.close()
            running.cancel()
            on_bus.cancel()
            await asyncio.wait({running, on_bus})
            await self.redis.aclose()


def create_app(
    gateway: Gateway, *, api_keys: list[str], allowed_origins: list[str], max_body_bytes: int, max_bodies_bytes: int
) -> Front:
    app = FastAPI(
        title="Tokenbus",
        version=__version__,
        lifespan=gateway.lifespan,
        redirect_slashes=False,  # a redirect would drop the body
        exception_handlers={
            TokenbusError: _on_error,
            HTTPException: _on_http_error,
            RequestValidationError: _on_bad_query,
            Exception: _on_fault,
        },
    )
    bodies = Bodies(max_body_bytes, max_bodies_bytes)
    endpoints = {
        **generation_endpoints(gateway, bodies),
        **result_endpoints(gateway, bodies),
        **message_endpoints(gateway, bodies),
        **response_endpoints(gateway, bodies),
    }
    _add_health(app, gateway)
    add_models(app, gateway)
    add_stored_responses(app, gateway)
    for path, endpoint in endpoints.items():
        app.router.routes.append(endpoint.route(path))
    app.openapi = cache(partial(describe, app, keyed=bool(api_keys)))  # type: ignore[method-assign]
    return Front(app, endpoints, api_keys=api_keys, allowed_origins=allowed_origins)


def _add_health(app: FastAPI, gateway: Gateway) -> None:
    async def alive() -> Response:
        return json_response({"status": "ok"})

    for path in ("/health", "/livez"):
        app.add_api_route(path, alive, methods=["GET"], summary="The process answers")

    @app.get("/readyz", summary="The bus is reachable")
    async def readyz() -> Response:
        if await gateway.is_ready():
            return json_response({"status": "ok"})
        return error_response(BusUnavailable("The message bus is unavailable.", retry_after=2))

    @app.get("/version", summary="The server's version")
    async def version() -> Response:
        return json_response({"version": __version__})

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        gateway.metrics.measure(list(gateway.hub))
        return Response(gateway.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TokenbusError)
    return refusal(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = {"allow": ", ".join(_allowed(request))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allowed)
        response = refusal(request, MethodNotAllowed(f"{request.method} is not allowed on {request.url.path}."))
        response.headers.update(allowed)
        return response
    if error.status_code == 404:
        return refusal(request, NotFound(f"There is no {request.url.path}."))
    return refusal(request, InvalidRequest(str(error.detail)))


async def _on_bad_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal(request, invalid_query(error))


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of a path: starlette names those of the first."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {"OPTIONS"}.union(*(route.methods or () for route in matching))
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _on_fault(request: Request, error: Exception) -> Response:
    return refusal(request, TokenbusError("The server had an error while processing your request."))
