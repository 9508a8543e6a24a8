"""models.yaml: the models of `tokenbus up`, loaded when somebody asks for them.

keep_alive: 10m                     # an idle model is unloaded after it; default 5m, never: not at all
memory: 24GiB                       # for all of them; default: what is free
models:
  qwen:
    path: models/qwen2.5-7b         # a folder or .gguf file (beside this file), or a hub id
    aliases: [q]
    preload: true                   # from the start, and not only when it is asked for
    keep_alive: never
    memory: 16GiB                   # that it takes; default: a guess by its files
    lora_modules: {sql: adapters/sql}   # served as qwen:sql
    max_model_len: 8192             # and any other flag of `python -m worker`
aliases:
  chat: {qwen: 90, llama: 10}       # a name for several, with their shares of the requests
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError

from cli.stack import Model
from shared.errors import StartupError, one_line
from worker.settings import WorkerSettings

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
NOT_OF_A_MODEL = ("help", "redis_url", "namespace", "log_level", "drain_timeout", "started_by")
DIFFERENTLY_CALLED = {"model_path": "path", "model_names": "aliases", "served_model_name": "aliases"}


def _seconds(given: Any) -> Any:
    """As Ollama writes it: 90, 90s, 5m, 2h; negative or `never`: for ever."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*([smhd]?)", str(given).strip())
    if str(given).strip() == "never":
        return math.inf
    if found is None or isinstance(given, bool):
        raise ValueError("write it as 90s, 5m, 2h or never")
    seconds = float(found[1]) * UNITS[found[2]]
    return seconds if seconds >= 0 else math.inf


Seconds = Annotated[float, BeforeValidator(_seconds)]
Name = Annotated[str, Field(min_length=1, pattern="^[^,]*$")]


class ModelEntry(BaseModel):
    """One model; what is not named here is a flag of its worker."""

    model_config = ConfigDict(extra="allow")

    path: str | None = None  # none for the echo engine, and for one that passes requests on
    aliases: list[Name] = []
    preload: bool = False
    keep_alive: Seconds | None = None
    memory: ByteSize | None = None
    lora_modules: dict[Name, str] = {}

    def flags(self) -> list[str]:
        """As a shell would be given them."""
        words = []
        for name, value in (self.model_extra or {}).items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif isinstance(value, list):
                words += [flag, ",".join(map(str, value))]
            elif value is not None:
                words += [flag, str(value)]
        return words


class ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: Annotated[dict[Name, ModelEntry], Field(min_length=1)]
    aliases: dict[Name, dict[Name, Annotated[float, Field(gt=0)]]] = {}
    keep_alive: Seconds = 300.0
    memory: ByteSize | None = None

    @classmethod
    def read(cls, file: Path, defaults: Mapping[str, str]) -> Self:
        """defaults: flags of workers, where a model has none of its own. Raises StartupError, which says where the
        mistake is."""
        try:
            found = cls.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
            found._place(file.resolve().parent)
        except OSError as error:
            raise StartupError(f"{file}: {error.strerror}") from None
        except (UnicodeDecodeError, RuntimeError) as error:  # the latter: no such user's home
            raise StartupError(f"{file}: {one_line(error)}") from None
        except yaml.YAMLError as error:
            raise StartupError(f"{file}: {one_line(error)}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "models"
            raise StartupError(f"{file}: {where}: {str(first['msg']).removeprefix('Value error, ')}") from None
        found._check(file, defaults)
        return found

    def _place(self, folder: Path) -> None:
        """Paths are meant from the file's folder; what is not there is a hub id."""
        for entry in self.models.values():
            if entry.path is not None and (folder / Path(entry.path).expanduser()).exists():
                entry.path = str(folder / Path(entry.path).expanduser())
            for name, path in entry.lora_modules.items():
                entry.lora_modules[name] = str(folder / Path(path).expanduser())

    def _check(self, file: Path, defaults: Mapping[str, str]) -> None:
        """Here, and not when somebody asks for the model."""
        names = [name for model in self.models for name in self.model(model, {}).names]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise StartupError(f"{file}: two models are called '{twice}'")
        if taken := next((name for name in self.aliases if name in names), None):
            raise StartupError(f"{file}: aliases.{taken}: a model is called so")
        for alias, shares in self.aliases.items():
            if missing := next((model for model in shares if model not in names), None):
                raise StartupError(f"{file}: aliases.{alias}: there is no model '{missing}'")
        for name in self.models:
            self._check_model(name, f"{file}: models.{name}", defaults)

    def _check_model(self, name: str, where: str, defaults: Mapping[str, str]) -> None:
        entry = self.models[name]
        for given, value in (entry.model_extra or {}).items():
            if given.replace("-", "_") in NOT_OF_A_MODEL:
                raise StartupError(f"{where}: '{given}' is not for one model")
            if isinstance(value, dict):
                raise StartupError(f"{where}: {given}: write it as text")
            if right := DIFFERENTLY_CALLED.get(given.replace("-", "_")):
                raise StartupError(f"{where}: '{given}' is called '{right}' here")
        if entry.memory and self.memory and entry.memory > self.memory:
            raise StartupError(f"{where}: it takes more memory than all may have")
        try:
            settings = WorkerSettings.read(where, self.model(name, defaults).words())
        except StartupError as error:
            raise StartupError(f"{where}: {error}") from None
        if settings.engine_flags and settings.engine == "auto":
            flags = " ".join(settings.engine_flags)
            raise StartupError(f"{where}: {flags}: not a worker's; if it is the engine's own, say which `engine`")

    def model(self, name: str, defaults: Mapping[str, str]) -> Model:
        entry = self.models[name]
        return Model(
            name, entry.path, tuple(entry.aliases), tuple(entry.lora_modules.items()), tuple(entry.flags())
        ).with_defaults(defaults)

    def keep_alive_of(self, name: str) -> float:
        own = self.models[name].keep_alive
        return self.keep_alive if own is None else own
