"""The gateway's memory: with many open streams that hardly say anything, and over many requests."""

from collections.abc import Callable
from typing import Any

from bench.bus.loads import ONE_TOKEN
from bench.bus.measure import measure
from bench.bus.results import at
from bench.tokenbus import MAX_QUEUE, SLOTS, Bus

IDLE_STEP_MS = 1000.0
IDLE_FOR_S = 4.0
REQUESTS_A_SAMPLE = 5000
CLIENTS = 64

Say = Callable[[str], None]


async def measure_memory(requests: int, say: Say) -> dict[str, Any]:
    """MB. `rss_mb` has a sample every so many requests; a gateway of its own, so that each begins as young."""
    say("memory: idle streams")
    idle = await _idle_streams()
    async with Bus.started() as bus:
        await bus.workers("fast", 1, slots=SLOTS)
        url = await bus.gateway()
        await bus.ready(url, {"fast": 1})
        rss: list[float | None] = []
        for number in range(requests // REQUESTS_A_SAMPLE):
            say(f"memory: {number * REQUESTS_A_SAMPLE:,} of {requests:,} requests")
            flags = ("--concurrency", str(CLIENTS), "--requests", str(REQUESTS_A_SAMPLE))
            measured = await measure(url, "fast", bus.processes, *ONE_TOKEN.flags, *flags)
            rss.append(at(measured, "rss_mb", "gateway"))
    return {**idle, "requests": requests, "rss_mb": rss}


async def _idle_streams() -> dict[str, Any]:
    async with Bus.started() as bus:
        await bus.workers("idle", 1, slots=MAX_QUEUE, step_ms=IDLE_STEP_MS)
        url = await bus.gateway()
        await bus.ready(url, {"idle": 1})
        flags = ("--concurrency", str(SLOTS), "--stream", "--max-tokens", "8000")
        measured = await measure(url, "idle", bus.processes, *flags, seconds=IDLE_FOR_S, drain=0)
    return {
        "idle_streams": measured["requests"] - sum(measured["errors"].values()),
        "idle_mb": at(measured, "rss_mb", "gateway"),
        "idle_tokens_per_s": measured["events_per_s"],
    }
