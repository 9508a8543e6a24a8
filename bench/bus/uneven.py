"""Four workers of which one is five times slower, against four even ones, with each dispatch method.

Requests come as a Poisson process, so that a slow worker slows nobody who asks. Both sets get the same arrivals, at a
share of what the uneven four can do together.
"""

from collections.abc import Callable
from typing import Any

from bench.bus.measure import measure
from bench.bus.results import middle
from bench.bus.slowest import Life, explain, lives
from bench.tokenbus import Bus
from shared.connection import connect
from shared.queue import DispatchMethod

METHODS: tuple[DispatchMethod, ...] = ("pull", "shortest_queue", "lottery")
WORKERS, SLOTS, TOKENS = 4, 8, 16
STEP_MS, SLOW_STEP_MS = 10.0, 50.0  # shorter ones would measure the cores and not the dispatch
SHARES = (0.3, 0.5, 0.8)
UNEVEN_S = 6.0  # a load: some 500 to 800 requests, of which a p99 needs many
MODEL = "model"
SETS = ("even", "uneven")  # a namespace each

Say = Callable[[str], None]


def capacity() -> float:
    """Requests/s of the uneven set, if no step were late and no slot ever free."""
    return ((WORKERS - 1) / STEP_MS + 1 / SLOW_STEP_MS) * 1000 * SLOTS / TOKENS


async def measure_uneven(method: DispatchMethod, seconds: float, rounds: int, say: Say) -> list[dict[str, Any]]:
    """A row per load: first content in ms of the even and the uneven set, medians of the rounds."""
    async with Bus.started() as bus:
        say(f"uneven workers: starting them for {method}")
        urls = {kind: await _start_set(bus, kind, method) for kind in SETS}
        for kind, url in urls.items():
            await bus.ready(url, {MODEL: WORKERS}, namespace=kind)
        return [await _at_load(bus, urls, method, share, seconds, rounds, say) for share in SHARES]


async def _start_set(bus: Bus, kind: str, method: DispatchMethod) -> str:
    slow = 1 if kind == "uneven" else 0
    await bus.workers(MODEL, WORKERS - slow, slots=SLOTS, step_ms=STEP_MS, namespace=kind)
    await bus.workers(MODEL, slow, slots=SLOTS, step_ms=SLOW_STEP_MS, namespace=kind)
    return await bus.gateway("--dispatch-method", method, namespace=kind)


async def _at_load(
    bus: Bus, urls: dict[str, str], method: str, share: float, seconds: float, rounds: int, say: Say
) -> dict[str, Any]:
    rate = share * capacity()
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in urls}
    jobs: dict[str, list[Life]] = {kind: [] for kind in urls}
    for number in range(rounds):
        for kind, url in urls.items():
            say(f"{kind} workers, {method}, {share:.0%} load, round {number + 1}")
            flags = ("--stream", "--usage", "--max-tokens", str(TOKENS), "--rate", f"{rate:g}", "--seed", str(number))
            found[kind].append(await measure(url, MODEL, bus.processes, *flags, seconds=seconds))
            jobs[kind] += await _lives(bus, kind)
    figures = {kind: _medians(measured) for kind, measured in found.items()}
    even, uneven = (figures[kind]["p99"] or 0.0 for kind in SETS)
    return {
        "method": method,
        "share": share,
        "rate": rate,
        **figures,
        "ratio": uneven / even if even else 0.0,
        "limit": explain(jobs["uneven"]),
        "even_limit": explain(jobs["even"]),
    }


async def _lives(bus: Bus, namespace: str) -> list[Life]:
    redis = connect(bus.redis_url)
    try:
        return await lives(redis, namespace)
    finally:
        await redis.aclose()


def _medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("p50", "p90", "p99", "max")
    first = {key: middle(measured["first_content"][key] for measured in rounds) for key in keys}
    return first | {"errors": sum(sum(measured["errors"].values()) for measured in rounds)}
