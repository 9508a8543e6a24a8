"""`python -m worker`: one model on the bus."""

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import uvloop

from shared.connection import Redis, connect
from shared.errors import EngineFailed, StartupError
from shared.keys import Keys
from shared.logging import get_logger, set_up_logging
from worker.engines.auto import choose
from worker.engines.base import Engine, EngineInfo
from worker.engines.options import EngineOptions
from worker.room import House, Room
from worker.service import Worker, together
from worker.session import Session
from worker.settings import WorkerSettings

log = get_logger("worker")

ENGINES = {  # imported only when chosen
    "echo": "worker.engines.echo_impl",
    "transformers": "worker.engines.transformers_impl",
    "vllm": "worker.engines.vllm_impl",
    "llamacpp": "worker.engines.llamacpp_impl",
    "openai": "worker.engines.openai_impl",
}


def options_of(settings: WorkerSettings) -> EngineOptions:
    return EngineOptions(
        model_path=settings.path or "",
        device=settings.device,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        slots=settings.limit_worker_concurrency,
        threads=settings.threads,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enforce_eager=settings.enforce_eager,
        weight_bits=settings.weight_bits(),
        num_gpus=settings.num_gpus,
        max_gpu_memory=settings.max_gpu_memory,
        tensor_parallel_size=settings.tensor_parallel_size,
        lora_modules=tuple(settings.adapters()),
        revision=settings.revision,
        chat_template=settings.conv_template,
        trust_remote_code=settings.trust_remote_code,
        tool_call_parser=settings.tool_call_parser,
        reasoning_parser=settings.reasoning_parser,
        upstream_url=settings.upstream_url,
        upstream_model=settings.upstream_model,
        upstream_api_key=settings.upstream_api_key,
        engine_flags=tuple(settings.engine_flags),
        hang_timeout=settings.hang_timeout,
        echo_interval_ms=settings.echo_interval_ms,
        echo_crash_word=settings.echo_crash_word,
    )


def chosen(settings: WorkerSettings) -> tuple[str, str]:
    """The engine's name, and why it. Raises StartupError."""
    if settings.engine != "auto":
        return settings.engine, "it was asked for"
    name, why = choose(options_of(settings), settings.lacks)
    if flag := settings.lacks(name):
        raise StartupError(f"unrecognized arguments: {flag}")
    return name, why


def make_engine(settings: WorkerSettings) -> Engine:
    name, why = chosen(settings)
    log.info("engine: %s, since %s", name, why)
    try:
        module = importlib.import_module(ENGINES[name])
    except ModuleNotFoundError as error:
        raise StartupError(
            f"--engine {name} needs the library '{error.name}': pip install 'tokenbus[{name}]'"
        ) from None
    engine: Engine = module.create(options_of(settings))
    return engine


def make_worker(settings: WorkerSettings, redis: Redis, house: House) -> Worker:
    engine = make_engine(settings)

    @asynccontextmanager
    async def make_session(info: EngineInfo, names: list[str], adapter: int, room: Room) -> AsyncIterator[Session]:
        async with aclosing(connect(settings.redis_url)) as own:  # each may be held by a blocking read
            yield Session(
                redis=own,
                redis_url=settings.redis_url,
                keys=Keys(settings.namespace),
                engine=engine,
                engine_info=info,
                names=names,
                adapter=adapter,
                room=room,
                started_by=settings.started_by,
                hang_timeout=settings.hang_timeout,
                drain_timeout=settings.drain_timeout,
            )

    return Worker(redis, settings.redis_url, engine, make_session, settings.names(), settings.hang_timeout, house)


async def serve(settings: WorkerSettings) -> None:
    """Each model by itself; if one cannot be served, or its engine hangs, the others are handed over."""
    redis, house = connect(settings.redis_url), House()
    workers = [make_worker(one, redis, house) for one in settings.each()]

    def stop() -> None:
        for worker in workers:
            worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    for worker in workers:
        await worker.load()
    await together([worker.serve() for worker in workers], stop)


def main() -> int:
    try:
        settings = WorkerSettings.read("python -m worker", sys.argv[1:])
        set_up_logging(settings.log_level)
        if flags := settings.without_meaning():
            log.warning("%s: without meaning here; a worker only calls out, to Redis (--redis-url)", ", ".join(flags))
        uvloop.run(serve(settings))
    except StartupError as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)
        return 2
    except EngineFailed as error:
        print(f"worker: {error.message}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a library's thread that still loads weights must not hold up the end
