"""CPU time and memory of the processes of a system, by role."""

from collections.abc import Mapping, Sequence

import psutil

MB = 1e6


def with_children(pids: Sequence[int]) -> list[int]:
    """And all that they started, as it is now."""
    found = dict.fromkeys(pids)
    for pid in pids:
        try:
            found |= dict.fromkeys(child.pid for child in psutil.Process(pid).children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    return list(found)


def machine_cpu_s() -> float:
    """Seconds that all cores have worked since the machine began."""
    times = psutil.cpu_times()
    return float(sum(times)) - float(times.idle) - float(getattr(times, "iowait", 0.0))


class Meter:
    """Reads the same processes again and again; one that ended counts as it was seen last."""

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        self._roles = {
            role: [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)] for role, pids in roles.items()
        }
        self._cpu: dict[int, float] = {}

    def cpu_s(self) -> dict[str, float]:
        """User and system seconds since each process began."""
        return {role: sum(map(self._cpu_of, processes)) for role, processes in self._roles.items()}

    def rss_mb(self) -> dict[str, float]:
        """Resident memory; what processes share counts for each."""
        return {role: sum(map(_rss_of, processes)) / MB for role, processes in self._roles.items()}

    def _cpu_of(self, process: psutil.Process) -> float:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            return self._cpu.get(process.pid, 0.0)
        self._cpu[process.pid] = times.user + times.system
        return self._cpu[process.pid]


def _rss_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
