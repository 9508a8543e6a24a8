"""The services that make up a whole stack, as `tokenbus up` starts them."""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.supervisor import Service
from cli.valkey import EmbeddedValkey

VALKEY_TIER, WORKER_TIER, GATEWAY_TIER = 0, 1, 2  # a gateway still gives errors to its clients while workers leave
SETTLING_S = 5.0  # to end after the drain

# Variables that would override what a child is told, or mean nothing to it.
CLEARED = {"TOKENBUS_REDIS_URL": "", "TOKENBUS_HOST": "", "TOKENBUS_PORT": ""}


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    path: str | None = None  # none for the echo engine

    @classmethod
    def parse(cls, text: str) -> "Model":
        """PATH or PATH=NAME; by default a model is called as its folder or file."""
        path, separator, name = text.rpartition("=")
        if not separator or "/" in name:
            path, name = text, ""
        return cls(name or Path(path).name.removesuffix(".gguf"), path)


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
            environment=self._environment | {"TOKENBUS_API_KEYS": ",".join(api_keys)},
            log=self._logs / "gateway.log",
            tier=GATEWAY_TIER,
            grace_s=self._grace_s,
        )

    def worker(self, model: Model, flags: Mapping[str, str]) -> Service:
        flags = {"model-names": model.name, **flags}
        if model.path is not None:
            flags = {"model-path": model.path, **flags}
        return Service(
            name=f"worker {model.name}",
            command=(*_python("worker"), *self._flags, *_spell(flags)),
            environment=self._environment | {"TOKENBUS_API_KEYS": ""},
            log=self._logs / f"worker-{model.name.replace('/', '_')}.log",
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


def _python(module: str) -> tuple[str, ...]:
    """-P: a folder called `gateway` where the user stands is not ours."""
    return (sys.executable, "-P", "-m", module)


def _spell(flags: Mapping[str, str]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]
