"""More workers, more gateways: what it gives on the cores that there are."""

from collections.abc import Callable
from typing import Any

from bench.bus.loads import ONE_TOKEN, UNLIMITED, Load
from bench.bus.measure import measure
from bench.bus.results import middle
from bench.tokenbus import SLOTS, Bus

CLIENTS = 128
SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4))  # gateways, workers
QUICK_SHAPES = ((1, 1), (1, 4), (2, 4))

Say = Callable[[str], None]


async def measure_scaling(shape: tuple[int, int], seconds: float, rounds: int, say: Say) -> dict[str, Any]:
    """Medians of the rounds; `cores` is CPU seconds per second, by role."""
    gateways, workers = shape
    say(f"scaling: {gateways} gateways, {workers} workers")
    async with Bus.started() as bus:
        await bus.workers("fast", workers, slots=SLOTS // workers)
        urls = [await bus.gateway() for _ in range(gateways)]
        for url in urls:
            await bus.ready(url, {"fast": workers})
        found: dict[str, list[dict[str, Any]]] = {ONE_TOKEN.name: [], UNLIMITED.name: []}
        for _ in range(rounds):
            for load in (ONE_TOKEN, UNLIMITED):
                found[load.name].append(await _load(bus, ",".join(urls), load, seconds))
    return {
        "gateways": gateways,
        "workers": workers,
        "one_token": _medians(found[ONE_TOKEN.name]),
        "stream": _medians(found[UNLIMITED.name]),
    }


async def _load(bus: Bus, urls: str, load: Load, seconds: float) -> dict[str, Any]:
    return await measure(urls, "fast", bus.processes, *load.flags, "--concurrency", str(CLIENTS), seconds=seconds)


def _medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    roles = rounds[0]["cpu_s"]
    return {
        "requests_per_s": middle(measured["requests_per_s"] for measured in rounds),
        "tokens_per_s": middle(measured["tokens_per_s"] for measured in rounds),
        "first_p50": middle(measured["first_content"]["p50"] for measured in rounds),
        "cores": {role: middle(measured["cpu_s"][role] / measured["seconds"] for measured in rounds) for role in roles},
        "loadgen_cores": middle(measured["loadgen_cpu_s"] / measured["seconds"] for measured in rounds),
        "errors": sum(sum(measured["errors"].values()) for measured in rounds),
    }
