"""The clients: each sends one request after the other, and again where it was refused or its gateway died."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

from tests.fault.chaos.attempt import Attempt
from tests.fault.chaos.ledger import Ledger
from tests.fault.chaos.mix import Mix, Request
from tests.fault.chaos.stack import Cluster
from tests.fault.chaos.verdict import Judge, Verdict

UNREACHABLE_PAUSE_S = 0.2


class Clients:
    """`arrivals` are the times of each streamed job's tokens, by job id."""

    GIVE_UP_S = 240.0

    def __init__(self, cluster: Cluster, mix: Mix, ledger: Ledger, patience: float) -> None:
        self._cluster = cluster
        self._mix = mix
        self._ledger = ledger
        self._judge = Judge(ledger)
        self._patience = patience
        self.arrivals: dict[str, list[float]] = defaultdict(list)
        self.sent = 0
        self.done = 0

    async def run(self, concurrency: int, more: Callable[[int], bool]) -> None:
        """Until `more`, asked with the number of the next request, says no."""

        def numbers() -> Iterator[int]:
            while more(self.sent):
                self.sent += 1
                yield self.sent - 1

        source = numbers()
        async with asyncio.TaskGroup() as tasks:
            for client in range(concurrency):
                tasks.create_task(self._client(source), name=f"client {client}")

    async def _client(self, source: Iterator[int]) -> None:
        for number in source:
            await self._perform(self._mix.request(number))
            self.done += 1

    async def _perform(self, request: Request) -> None:
        draw = random.Random(request.number)
        side = draw.randrange(len(self._cluster.gateways))
        started, seen = time.monotonic(), set[Verdict]()
        while time.monotonic() - started < self.GIVE_UP_S:
            gateway = self._cluster.gateways[side]
            attempt = await Attempt(request, gateway.life).run(gateway.port, self._patience)
            verdict = self._judge.verdict(attempt, gateway.was_killed(attempt.life))
            self._keep_arrivals(attempt)
            if not verdict.to_be_sent_again:
                return self._end(verdict, seen)
            seen.add(verdict)
            self._ledger.count(f"sent again: {verdict.value}")
            if attempt.status != 429:
                side = (side + 1) % len(self._cluster.gateways)
            await asyncio.sleep(_pause(attempt, verdict) * draw.uniform(1, 1.5))
        self._ledger.violate("silent end", f"request {request.number} did not get in within {self.GIVE_UP_S} s")

    def _end(self, verdict: Verdict, seen: set[Verdict]) -> None:
        self._ledger.count("accepted")
        self._ledger.count(verdict.value)
        if Verdict.CUT in seen:
            self._ledger.count(Verdict.CUT.value)
            self._ledger.count("cut, and finished elsewhere", verdict is not Verdict.FAILED)

    def _keep_arrivals(self, attempt: Attempt) -> None:
        if attempt.request.streams:
            for index, times in attempt.arrivals.items():
                self.arrivals[f"{attempt.id}-{index}"] = times


def _pause(attempt: Attempt, verdict: Verdict) -> float:
    if verdict is Verdict.REFUSED:
        return float(attempt.headers.get("retry-after", 1))
    return UNREACHABLE_PAUSE_S if verdict is Verdict.UNREACHABLE else 0.0
