"""`tokenbus up` as a process of its own, with folders of its own."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.processes import is_alive

ROOT = Path(__file__).resolve().parents[2]


def tokenbus(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "cli", *words]


def environment(folder: Path) -> dict[str, str]:
    """As on a machine where nothing was ever started."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TOKENBUS_") and key != "REDIS_URL"}
    folders = {"HOME": folder, "XDG_DATA_HOME": folder / "data", "XDG_STATE_HOME": folder / "state", "PYTHONPATH": ROOT}
    return kept | {key: str(value) for key, value in folders.items()}


class Up:
    def __init__(self, folder: Path, *flags: str, **variables: str) -> None:
        self.environment = environment(folder) | variables
        self.environment["PATH"] = f"{folder}:{os.environ['PATH']}"
        _put_command(folder / "tokenbus")
        self._out, self._err = folder / "up.out", folder / "up.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.popen = subprocess.Popen(
                tokenbus("up", *flags), env=self.environment, cwd=folder, stdout=out, stderr=err, start_new_session=True
            )
        self._seen: set[psutil.Process] = set()

    def banner(self, timeout: float = 120) -> str:
        deadline = time.monotonic() + timeout
        while "Ctrl-C stops everything" not in self._out.read_text():
            assert self.popen.poll() is None, f"ended: {self.said()}"
            assert time.monotonic() < deadline, f"no banner: {self.said()}"
            time.sleep(0.05)
        self.tree()
        return self._out.read_text()

    def said(self) -> str:
        """What it wrote on stderr."""
        return self._err.read_text()

    def tree(self) -> list[psutil.Process]:
        """Its children, and theirs."""
        self._seen |= set(psutil.Process(self.popen.pid).children(recursive=True))
        return list(self._seen)

    def child(self, *words: str) -> psutil.Process:
        """The living process whose command line holds these words."""
        return next(
            process
            for process in psutil.Process(self.popen.pid).children(recursive=True)
            if all(word in " ".join(process.cmdline()) for word in words)
        )

    def paste(self, line: str) -> str:
        """Output of a line given to a shell."""
        done = subprocess.run(
            ["bash", "-c", line], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def survivors(self, timeout: float = 10) -> list[psutil.Process]:
        """Which processes of the tree live on, after a moment's patience."""
        _, alive = psutil.wait_procs(self._seen, timeout=timeout)
        return [process for process in alive if is_alive(process)]

    def interrupt(self, timeout: float = 30) -> int:
        self.tree()
        self.popen.send_signal(signal.SIGINT)
        return self.popen.wait(timeout)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.tree()
            self.popen.kill()
            self.popen.wait()
        for process in self.survivors(timeout=5):
            process.kill()


def _put_command(file: Path) -> None:
    """The console script, for an environment where the project is not installed."""
    file.write_text(f'#!/bin/sh\nexec {shlex.join(tokenbus())} "$@"\n')
    file.chmod(0o755)


def line_with(text: str, part: str) -> str:
    return next(line for line in text.splitlines() if part in line)
