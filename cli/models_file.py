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
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from cli.stack import Model
from shared.errors import StartupError, one_line
from worker.settings import WorkerSettings

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_NAME = 200
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


def _plain(given: str) -> str:
    """Workers are told names and paths in a list with commas."""
    if not given or "," in given or not given.isprintable() or given != given.strip():
        raise ValueError("it may not be empty, nor have commas, control characters or blanks around it")
    return given


def _adapter(given: str) -> str:
    if "=" in given:
        raise ValueError("an adapter's name may not have a '='")
    return given


def _size(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("write it as 24GiB")
    return given


Seconds = Annotated[float, BeforeValidator(_seconds)]
Bytes = Annotated[ByteSize, BeforeValidator(_size)]
Plain = Annotated[str, AfterValidator(_plain)]
Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_plain)]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ModelEntry(BaseModel):
    """One model; what is not named here is a flag of its worker."""

    model_config = ConfigDict(extra="allow")

    path: Plain | None = None  # none for the echo engine, and for one that passes requests on
    aliases: list[Name] = []
    preload: bool = False
    keep_alive: Seconds | None = None
    memory: Bytes | None = None
    lora_modules: dict[Annotated[Name, AfterValidator(_adapter)], Plain] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_hyphens(cls, given: Any) -> Any:
        """As flags are written: keep-alive."""
        if not isinstance(given, dict):
            return given
        spelled = {name.replace("_", "-"): name for name in cls.model_fields if "_" in name}
        if twice := next((name for name in given if name in spelled and spelled[name] in given), None):
            raise ValueError(f"'{twice}' and '{spelled[twice]}': choose one of them")
        return {spelled.get(name, name): value for name, value in given.items()}

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


class _OneOfEachKey(yaml.SafeLoader):
    """Of two models with one name the first would be forgotten in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := next((key for key, _ in node.value if keys.count(key.value) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"'{twice.value}' is there twice", twice.start_mark)
        return super().construct_mapping(node, deep)


class ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: Annotated[dict[Name, ModelEntry], Field(min_length=1)]
    aliases: dict[Name, Annotated[dict[Name, Share], Field(min_length=1)]] = {}
    keep_alive: Seconds = 300.0
    memory: Bytes | None = None

    @classmethod
    def read(cls, file: Path, defaults: Mapping[str, str]) -> Self:
        """defaults: flags of workers, where a model has none of its own. Raises StartupError, which says where the
        mistake is."""
        try:
            text = file.read_text(encoding="utf-8")
            found = cls.model_validate(yaml.load(text, _OneOfEachKey) or {})  # a safe loader
        except OSError as error:
            raise StartupError(f"{file}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"] if part != "[key]") or "models"
            why = str(first["msg"]).removeprefix("Value error, ")
            raise StartupError(one_line(ValueError(f"{file}: {where}: {why}"))) from None
        # Dates that are none, numbers without an end, lists within lists within lists.
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise StartupError(f"{file}: {one_line(error)}") from None
        found._place(file)
        found._check(file, defaults)
        return found

    def _place(self, file: Path) -> None:
        """Paths are meant from the file's folder; what is not there is a hub id."""
        folder = file.resolve().parent
        for model, entry in self.models.items():
            try:
                if entry.path is not None and (folder / Path(entry.path).expanduser()).exists():
                    entry.path = str(folder / Path(entry.path).expanduser())
                for name, path in entry.lora_modules.items():
                    entry.lora_modules[name] = str(folder / Path(path).expanduser())
            except (OSError, RuntimeError) as error:  # too long for a path; no such user's home
                why = getattr(error, "strerror", None) or one_line(error)
                raise StartupError(f"{file}: models.{model}: {why}") from None

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
        if entry.memory is not None and self.memory is not None and entry.memory > self.memory:
            raise StartupError(f"{where}: it takes more memory than all may have")
        try:
            settings = WorkerSettings.read(where, self.model(name, defaults).words())
        except StartupError as error:
            raise StartupError(f"{where}: {error}") from None
        for adapter, folder in entry.lora_modules.items():
            if settings.engine != "echo" and not Path(folder).is_dir():
                raise StartupError(f"{where}.lora_modules.{adapter}: there is no folder {folder}")
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
