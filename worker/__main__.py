"""`python -m worker`: one model on the bus."""

import asyncio
import importlib
import os
import signal
import sys

import uvloop

from shared.connection import connect
from shared.errors import EngineFailed, StartupError
from shared.keys import Keys
from shared.logging import get_logger, set_up_logging
from worker.engines.base import Engine, EngineInfo
from worker.engines.options import EngineOptions
from worker.service import Worker
from worker.session import Session
from worker.settings import WorkerSettings

log = get_logger("worker")

ENGINES = {  # imported only when chosen
    "echo": "worker.engines.echo_impl",
    "transformers": "worker.engines.transformers_impl",
}


def make_engine(settings: WorkerSettings) -> Engine:
    options = EngineOptions(
        model_path=settings.model_path or "",
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
        revision=settings.revision,
        chat_template=settings.conv_template,
        trust_remote_code=settings.trust_remote_code,
        tool_call_parser=settings.tool_call_parser,
        reasoning_parser=settings.reasoning_parser,
        echo_interval_ms=settings.echo_interval_ms,
        echo_crash_word=settings.echo_crash_word,
    )
    try:
        module = importlib.import_module(ENGINES[settings.engine])
    except ModuleNotFoundError as error:
        raise StartupError(
            f"--engine {settings.engine} needs the library '{error.name}': pip install 'tokenbus[{settings.engine}]'"
        ) from None
    engine: Engine = module.create(options)
    return engine


async def serve(settings: WorkerSettings) -> None:
    redis, engine = connect(settings.redis_url), make_engine(settings)

    def make_session(info: EngineInfo) -> Session:
        return Session(
            redis=redis,
            redis_url=settings.redis_url,
            keys=Keys(settings.namespace),
            engine=engine,
            engine_info=info,
            names=settings.names(),
            hang_timeout=settings.hang_timeout,
            drain_timeout=settings.drain_timeout,
        )

    worker = Worker(redis, settings.redis_url, engine, make_session, settings.hang_timeout)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, worker.stop)
    await worker.run()


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
