"""The flags of `python -m gateway`."""

import math
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from shared.errors import StartupError
from shared.queue import DispatchMethod
from shared.settings import CommaList, ProcessSettings

ModelName = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0)]


class GatewaySettings(ProcessSettings):
    """The OpenAI-compatible address of a Tokenbus. Any number of gateways may share one Redis."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535)
    workers: int = Field(1, gt=0, le=256, description="processes that serve the port together")
    api_keys: CommaList = Field([], description="a,b: accepted keys; better by TOKENBUS_API_KEYS or a file")
    api_keys_file: Path | None = Field(None, description="file with one key a line")
    allowed_origins: CommaList = Field(["*"], description="a,b: CORS origins")
    dispatch_method: DispatchMethod = Field("pull", description="pull, shortest_queue or lottery")
    max_queue: int = Field(1024, gt=0, description="jobs that may wait per model; beyond it 429")
    default_max_tokens: int | None = Field(None, gt=0, description="reply limit where a chat request gives none")
    max_body_mb: float = Field(32.0, gt=0, description="larger request bodies get 413")
    max_bodies_mb: float = Field(256.0, gt=0, description="bodies of all open requests of all processes; beyond it 429")
    max_connections: int = Field(4096, gt=0, description="open connections of all processes; beyond it 503")
    keep_alive: int = Field(60, gt=0, description="s that a connection may be open without a request")
    request_timeout: float = Field(600.0, gt=0, description="s from acceptance to the end of a reply")
    response_ttl: float = Field(86400.0, gt=0, description="s that a stored response (/v1/responses) is kept")
    aliases: dict[ModelName, Annotated[dict[ModelName, Share], Field(min_length=1)]] = Field(
        {},
        description='names for several models, with their shares: {"chat": {"qwen": 90, "llama": 10}}',
    )
    stall_timeout: float = Field(300.0, gt=0, description="s without a token after which a job goes to another worker")
    no_worker_timeout: float = Field(60.0, gt=0, description="s that a job waits when no worker is left for its model")
    drain_timeout: float = Field(30.0, ge=0, description="s that open requests may go on after SIGTERM")
    controller_address: str | None = Field(None, description="no meaning on a bus: see --redis-url")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api_keys_file is not None:
            try:
                lines = self.api_keys_file.read_text().split()
            except OSError as error:
                raise StartupError(f"--api-keys-file {self.api_keys_file}: {error.strerror}") from None
            if not lines:
                raise StartupError(f"--api-keys-file {self.api_keys_file} holds no key")
            self.api_keys = [*self.api_keys, *lines]
        for name, shares in self.aliases.items():
            if nested := next((model for model in shares if model in self.aliases), None):
                raise StartupError(f"--aliases: '{name}' has a share for '{nested}', which is an alias itself")
        return self

    def share(self) -> Self:
        """The settings of one of the processes: what bounds all of them is divided, rounded up. The share of bodies
        has room for one body of any size that is allowed."""
        return self.model_copy(
            update={
                "workers": 1,
                "max_connections": math.ceil(self.max_connections / self.workers),
                "max_bodies_mb": max(self.max_bodies_mb / self.workers, min(self.max_body_mb, self.max_bodies_mb)),
            }
        )
