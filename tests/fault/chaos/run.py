"""One run from start to report: clients among faults, then a look at what is left."""

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import wait_until
from tests.fault.chaos import leaks, recovery
from tests.fault.chaos.clients import Clients
from tests.fault.chaos.faults import Faults
from tests.fault.chaos.ledger import Ledger
from tests.fault.chaos.mix import Mix
from tests.fault.chaos.report import Report
from tests.fault.chaos.stack import Cluster
from tests.processes import Stack

QUIET_WITHIN_S = 40.0
MEMORY_MB = 350.0  # of one process
COUNTED = ("job_redelivered", "fenced_deltas", "deadletter", "lease_expired")


@dataclass(frozen=True, slots=True)
class Options:
    requests: int = 5000
    seed: int = 1
    concurrency: int = 64
    patience: float = 150.0  # s that a client waits for one answer
    pause: tuple[float, float] = (1.0, 4.0)  # s between two faults
    only: tuple[str, ...] = ()  # kinds of faults; none: all of them


async def run(options: Options, folder: Path) -> Report:
    """At least so many requests, and more until every kind of fault was seen. Logs and data lie in the folder."""
    ledger = Ledger(folder / "chaos.log")
    report = Report(options.seed, ledger)
    async with Cluster(folder, ledger).running() as cluster:
        faults = Faults(cluster, ledger, options.seed, options.pause, options.only)
        clients = Clients(cluster, Mix(options.seed, options.requests), ledger, options.patience)
        started = time.monotonic()
        await _clients_among_faults(clients, faults, options)
        ledger.count("requests", clients.sent)
        report.seconds = time.monotonic() - started
        report.faults = faults.done
        report.waits = {
            name: recovery.waits(faults.done, clients.arrivals, undisturbed=undisturbed)
            for name, undisturbed in (("alone", True), ("among other faults", False))
        }
        await _look_around(cluster, ledger, report)
    return report


async def _clients_among_faults(clients: Clients, faults: Faults, options: Options) -> None:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(faults.run(stop), name="faults")
        await clients.run(options.concurrency, lambda number: number < options.requests or not faults.once_each)
        stop.set()


async def _look_around(cluster: Cluster, ledger: Ledger, report: Report) -> None:
    try:
        await cluster.whole()
    except AssertionError as error:
        ledger.violate("not back in time", f"the stack after the faults: {error}")
    for leak in await _leaks_that_stay(cluster):
        ledger.violate("leaked key", leak)
    for row in await Stack(cluster.redis.url, Path()).registry():
        if row["slots_used"]:
            ledger.violate("leaked slot", f"{row['slots_used']} of worker {row['worker']}", row["slots_used"])
    report.metrics = await _metrics(cluster)
    report.memory_mb = _memory(cluster, ledger)
    report.exits = cluster.exits


async def _leaks_that_stay(cluster: Cluster) -> list[str]:
    found: list[str] = ["nobody has looked"]

    async def none() -> bool:
        nonlocal found
        workers = [worker.worker_id or "" for worker in cluster.workers]
        found = await asyncio.to_thread(leaks.find, cluster.redis.port, workers, len(cluster.gateways))
        slots = sum(row["slots_used"] for row in await Stack(cluster.redis.url, Path()).registry())
        return not found and slots == 0

    try:
        await wait_until(none, description="quiet", timeout=QUIET_WITHIN_S, every=0.5)
    except AssertionError:
        return found
    return []


async def _metrics(cluster: Cluster) -> dict[str, float]:
    """Summed over the gateways; those that were killed have taken theirs along."""
    found: dict[str, float] = defaultdict(float)
    for gateway in cluster.gateways:
        response = await gateway.get("/metrics")
        for family in text_string_to_metric_families(response.text if response else ""):
            if family.name.removeprefix("tokenbus_") in COUNTED:
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        found[" ".join(filter(None, (sample.name, sample.labels.get("reason"))))] += sample.value
    return dict(found)


def _memory(cluster: Cluster, ledger: Ledger) -> dict[str, float]:
    largest: dict[str, float] = {}
    for member in cluster.members:
        size = psutil.Process(member.process.pid).memory_info().rss / 2**20
        largest[member.module] = max(size, largest.get(member.module, 0))
        if size > MEMORY_MB:
            ledger.violate("memory", f"{member.module} has {size:.0f} MB")
    return largest
