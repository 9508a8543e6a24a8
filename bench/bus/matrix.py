"""Every load on every system, at each number of clients: one after the other within a point, so that noise hits all."""

import math
from collections.abc import Callable, Sequence

from bench.bus.loads import HOPELESS_MS, MOST, SLOW_MS, Load
from bench.bus.measure import measure
from bench.bus.results import Point
from bench.systems import System

Say = Callable[[str], None]


class Matrix:
    def __init__(self, systems: Sequence[System], *, seconds: float, rounds: int, say: Say) -> None:
        self._systems = systems
        self._seconds = seconds
        self._rounds = rounds
        self._say = say
        self._hopeless: set[tuple[str, str]] = set()  # systems, and the loads of which they get no more

    async def run(self, loads: Sequence[Load], concurrencies: Sequence[int], points: list[Point]) -> None:
        """Adds to `points`, so that what was measured is there also if it is interrupted."""
        for load in loads:
            for concurrency in concurrencies:
                points += await self._point(load, concurrency)

    async def _point(self, load: Load, concurrency: int) -> list[Point]:
        contestants = [system for system in self._systems if self._follows(system, load, concurrency)]
        points: list[Point] = []
        for number in range(self._rounds):
            turn = number % max(1, len(contestants))
            for system in contestants[turn:] + contestants[:turn]:
                if self._follows(system, load, concurrency) and not any(_is_slow(point, system) for point in points):
                    self._say(f"{load.name}, {concurrency} clients, round {number + 1}: {system.name}")
                    points.append(await self._round(system, load, concurrency, number))
        return sorted(points, key=lambda point: [system.name for system in contestants].index(point.system))

    async def _round(self, system: System, load: Load, concurrency: int, number: int) -> Point:
        measured = await measure(
            system.base_url,
            system.models[load.model],
            system.processes,
            *(*load.flags, "--concurrency", str(concurrency)),
            seconds=self._seconds,
        )
        point = Point(system.name, load.name, concurrency, number, measured)
        if _first_content(point) > HOPELESS_MS:
            self._hopeless.add((system.name, load.name))
        return point

    def _follows(self, system: System, load: Load, concurrency: int) -> bool:
        return concurrency <= MOST.get(system.name, concurrency) and (system.name, load.name) not in self._hopeless


def _first_content(point: Point) -> float:
    first = point.measured["first_content"]["p50"]
    return math.inf if first is None else float(first)


def _is_slow(point: Point, system: System) -> bool:
    """Its round was a long one, and told enough."""
    return point.system == system.name and _first_content(point) > SLOW_MS
