"""Settings of one process: flag > environment (TOKENBUS_*) > file (TOKENBUS_CONFIG, TOML) > default."""

import argparse
import os
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, Self

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from shared.errors import StartupError


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


CommaList = Annotated[list[str], NoDecode, BeforeValidator(_split)]  # typed as a,b,c


class ProcessSettings(BaseSettings):
    """What every process takes. Read in `__main__` only; classes get plain keyword arguments."""

    model_config = SettingsConfigDict(
        env_prefix="TOKENBUS_",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379",
        validation_alias=AliasChoices("redis_url", "TOKENBUS_REDIS_URL"),
        description="redis[s]://[user:password@]host:port/db; environment REDIS_URL",
    )
    namespace: str = Field("tokenbus", description="prefix of every key and channel in Redis")
    log_level: str = Field(
        "info", pattern="(?i)^(debug|info|warning|error)$", description="debug, info, warning, error"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        named = os.environ.get("TOKENBUS_CONFIG")
        if named and not os.path.isfile(named):
            raise StartupError(f"TOKENBUS_CONFIG: there is no file {named}")
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, named))

    @classmethod
    def read(cls, prog: str, argv: Sequence[str]) -> Self:
        """Parse flags (exits 2 on an unknown one, 0 on --help). Raises StartupError for a value that does not fit."""
        try:
            parser = _OneLineParser(prog=prog, description=cls.__doc__, allow_abbrev=False)
            source: CliSettingsSource[Any] = CliSettingsSource(cls, cli_parse_args=list(argv), root_parser=parser)
            return cls(_cli_settings_source=source)  # type: ignore[call-arg]
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            reason = str(first["msg"]).removeprefix("Value error, ")
            raise StartupError(f"--{name.replace('_', '-')}: {reason}" if name else reason) from None
        except (SettingsError, ValueError, OSError) as error:
            raise StartupError(str(error).splitlines()[0]) from None
