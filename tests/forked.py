"""`python -m MODULE` without Python's start and its imports: forked off a server that has done them.

It has the interface of subprocess.Popen, as far as tests use it. The server is multiprocessing's, one for each process
of pytest; it imports `preloaded.py` once.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import wait as wait_for
from pathlib import Path

IS_HERE = sys.platform == "linux"  # elsewhere torch may not survive a fork
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])


class Forked:
    def __init__(self, module: str, flags: tuple[str, ...], folder: Path, environment: dict[str, str], log: Path):
        log.touch()
        self._process = SERVER.Process(target=_run, args=(module, flags, str(folder), environment, str(log)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._looking = threading.Lock()  # its end can be read once

    @property
    def returncode(self) -> int | None:
        with self._looking:
            return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not wait_for([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        code = self.returncode
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(module: str, flags: tuple[str, ...], folder: str, environment: dict[str, str], log: str) -> None:
    """In the new process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sink = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(sink, number)
    os.close(sink)
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
