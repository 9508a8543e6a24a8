"""How long a job takes from the gateway's XADD to a waiting worker's claim, in two processes, one job at a time."""

import asyncio
import time
from typing import Any

from bench.bus.measure import end, start_module
from bench.report import times
from bench.tokenbus import Bus
from shared.connection import connect
from shared.keys import Keys
from shared.messages import Job, SamplingParams
from shared.queue import JobQueue

MODEL = "dispatch"
WARMUP = 50  # jobs
BETWEEN_S = 0.002  # so that the claimer blocks again


async def measure_dispatch(jobs: int) -> dict[str, Any]:
    """ms; the clock is read before the enqueueing command is made and after the claim was understood."""
    async with Bus.started() as bus:
        claimer = await start_module("bench.bus.claimer", bus.redis_url, MODEL, str(WARMUP + jobs))
        redis = connect(bus.redis_url)
        try:
            assert claimer.stdout is not None
            await claimer.stdout.readline()  # ready
            queue = JobQueue(redis, Keys())
            took = [await _one(queue, claimer.stdout) for _ in range(WARMUP + jobs)][WARMUP:]
        finally:
            await redis.aclose()
            await end(claimer)
    return {"jobs": jobs, **times([value / 1000 for value in took])}


async def _one(queue: JobQueue, told: asyncio.StreamReader) -> float:
    await asyncio.sleep(BETWEEN_S)
    now = time.time_ns()
    job = Job(
        id=f"job-{now}",
        request=f"request-{now}",
        model=MODEL,
        kind="chat",
        payload={"sent": time.monotonic_ns()},
        sampling=SamplingParams(seed=1),
        gateway="bench",
        deadline=now // 1_000_000 + 60_000,
    )
    await queue.enqueue([job], 1024, "pull")
    return float(await told.readline())
