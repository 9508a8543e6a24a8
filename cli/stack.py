"""The services that make up a whole stack, as `tokenbus up` starts them."""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote
from zlib import crc32

from cli.supervisor import Service
from cli.valkey import EmbeddedValkey
from worker.settings import path_and_name

VALKEY_TIER, WORKER_TIER, GATEWAY_TIER = 0, 1, 2  # a gateway still gives errors to its clients while workers leave
LONGEST_FILE_NAME = 100
SETTLING_S = 5.0  # to end after the drain

# Variables that would override what a child is told, or mean nothing to it.
CLEARED = {"TOKENBUS_REDIS_URL": "", "TOKENBUS_HOST": "", "TOKENBUS_PORT": ""}


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    path: str | None = None  # none for the echo engine
    aliases: tuple[str, ...] = ()
    adapters: tuple[tuple[str, str], ...] = ()  # names and folders
    flags: tuple[str, ...] = ()  # of its worker, as they are typed

    @classmethod
    def parse(cls, text: str) -> "Model":
        """PATH or PATH=NAME; by default a model is called as its folder or file."""
        path, name = path_and_name(text)
        return cls(name or Path(path).name.removesuffix(".gguf"), path)

    def with_defaults(self, flags: Mapping[str, str]) -> "Model":
        """Of the flags, those that it has not itself."""
        added = {name: value for name, value in flags.items() if self.flag(name) is None}
        return replace(self, flags=(*self.flags, *_spell(added)))

    def flag(self, name: str) -> str | None:
        words = dict(pairwise(self.flags))
        return words.get(f"--{name}")

    @property
    def models(self) -> list[str]:
        """It, and with each adapter: all that have a queue."""
        return [self.name, *(f"{self.name}:{adapter}" for adapter, _ in self.adapters)]

    @property
    def names(self) -> list[str]:
        """All that can be asked for."""
        own = (self.name, *self.aliases)
        return [*own, *(f"{name}:{adapter}" for name in own for adapter, _ in self.adapters)]

    def words(self) -> list[str]:
        """All that its worker is told of it."""
        own = {"model-names": ",".join((self.name, *self.aliases))}
        if self.path is not None:
            own["model-path"] = self.path
        if self.adapters:
            own["lora-modules"] = ",".join(f"{name}={folder}" for name, folder in self.adapters)
        return [*_spell(own), *self.flags]


class Stack:
    """Every service gets the bus by environment, since arguments show in `ps`."""

    def __init__(self, *, redis_url: str, namespace: str, log_level: str, logs: Path, drain_timeout: float) -> None:
        self._environment = {**CLEARED, "REDIS_URL": redis_url}
        self._flags = ("--namespace", namespace, "--log-level", log_level, "--drain-timeout", f"{drain_timeout:g}")
        self._logs = logs
        self._grace_s = drain_timeout + SETTLING_S

    def gateway(self, flags: Mapping[str, str], api_keys: list[str]) -> Service:
        return Service(
            name="gateway",
            command=(*_python("gateway"), *self._flags, *_spell(flags)),
            environment={
                **self._environment,
                "TOKENBUS_API_KEYS": ",".join(api_keys),
                # Of two tables both would count.
                **({"TOKENBUS_ALIASES": ""} if "aliases" in flags else {}),
            },
            log=self._logs / "gateway.log",
            tier=GATEWAY_TIER,
            grace_s=self._grace_s,
        )

    def worker(self, model: Model, started_by: str = "") -> Service:
        """started_by: as in WorkerInfo."""
        return Service(
            name=f"worker {model.name}",
            command=(*_python("worker"), *self._flags, *model.words()),
            environment=self._environment | {"TOKENBUS_API_KEYS": "", "TOKENBUS_STARTED_BY": started_by},
            log=self._logs / f"worker-{_file_name(model.name)}.log",
            tier=WORKER_TIER,
            grace_s=self._grace_s,
        )


def valkey(server: EmbeddedValkey, lock: int, logs: Path) -> Service:
    return Service(
        name="valkey",
        command=server.command,
        folder=server.folder,
        inherit=(lock,),
        log=logs / "valkey.log",
        tier=VALKEY_TIER,
        orphan_signal=signal.SIGTERM,  # it writes its append-only file to the end
    )


def _file_name(model: str) -> str:
    """One for each model; they may be called as no file can be."""
    name = quote(model, safe=" ")
    return name if len(name) <= LONGEST_FILE_NAME else f"{name[:LONGEST_FILE_NAME]}-{crc32(model.encode()):08x}"


def _python(module: str) -> tuple[str, ...]:
    """-P: a folder called `gateway` where the user stands is not ours."""
    return (sys.executable, "-P", "-m", module)


def _spell(flags: Mapping[str, str]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]
