"""The flags of `python -m worker`: FastChat's, with the same meaning, and our own."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, model_validator
from pydantic_settings import CliUnknownArgs, SettingsConfigDict

from shared.errors import StartupError
from shared.settings import CommaList, ProcessSettings

EngineName = Literal["transformers", "echo", "vllm", "llamacpp", "openai", "auto"]
ToolCallParser = Literal["hermes", "llama3", "mistral", "deepseek", "qwen3-coder", "json", "none"]
ReasoningParser = Literal["think", "magistral", "none"]


def _check_size(value: str) -> str:
    """As accelerate reads it, less what it takes for bits (20Gb)."""
    if re.fullmatch(r"\d+(\.\d+)?([KMGkmg][Ii][Bb]|[KMGkmg]B)", value) is None:
        raise ValueError(f"{value!r} is no size of memory; write it as 20GiB or 20GB")
    return value


MemorySize = Annotated[str, AfterValidator(_check_size)]


def path_and_name(text: str) -> tuple[str, str]:
    """Of PATH or PATH=NAME; what is there, or has a slash behind its last =, is a path."""
    path, separator, name = text.rpartition("=")
    return (path, name) if separator and "/" not in name and not Path(text).exists() else (text, "")


WITH_FLAGS_OF_THEIR_OWN = ("vllm", "llamacpp", "auto")
# Flags that an engine has no use for.
PLACED = ("load_8bit", "load_4bit", "num_gpus", "tensor_parallel_size")
NOT_FOR = {
    "echo": ("tensor_parallel_size",),
    "llamacpp": ("dtype", *PLACED, "enforce_eager", "lora_modules"),
    "openai": ("model_path", "device", "dtype", *PLACED, "lora_modules"),
    "vllm": ("load_8bit", "load_4bit", "num_gpus", "max_gpu_memory", "device"),
}


class WorkerSettings(ProcessSettings):
    """A Tokenbus worker: one model or several, with an engine each; one outbound connection (Redis). Listens on no
    port but, where a model is dealt out, the loopback's, for its own processes. With --engine vllm or llamacpp, the
    flags of vLLM or llama-server too."""

    model_config = SettingsConfigDict(cli_ignore_unknown_args=True)
    engine_flags: CliUnknownArgs = Field([], description="what is not a flag of this command")

    model_path: CommaList = Field(
        [],
        description="a folder, a hub id or a .gguf file; repeated as PATH or PATH=NAME: several models in one worker",
    )
    model_names: CommaList = Field(
        [],
        validation_alias=AliasChoices("model_names", "served_model_name"),
        description="a,b: the model's name and its aliases, case-sensitive; default: the folder's name; of several "
        "models, a name for each",
    )
    engine: EngineName = Field(
        "auto",
        description="transformers, vllm, llamacpp, openai (another server), or echo (no model, for tests); auto: vllm "
        "if it is installed and there is a GPU, llamacpp for a .gguf file if it is installed, else transformers",
    )
    device: Literal["cuda", "cpu", "mps"] | None = Field(None, description="default: the best that is there")
    dtype: Literal["float32", "float16", "bfloat16", "auto"] | None = Field(
        None,
        description="default: the model's own; on a CPU what is faster, and float32 if dealt out",
    )
    max_model_len: int | None = Field(None, gt=0, description="prompt and reply together, in tokens")
    limit_worker_concurrency: int | None = Field(
        None,
        gt=0,
        validation_alias=AliasChoices("limit_worker_concurrency", "max_num_seqs"),
        description="sequences that run together (slots); default: 256 on a GPU, else 32",
    )
    load_8bit: bool = Field(False, description="weights and products in 8 bits (bitsandbytes); cuda and cpu")
    load_4bit: bool = Field(False, description="weights in 4 bits (bitsandbytes, nf4); cuda and cpu")
    num_gpus: int = Field(1, gt=0, description="GPUs that the layers of the model are spread over")
    max_gpu_memory: MemorySize | None = Field(None, description="of each GPU, for weights: 20GiB; default: all")
    lora_modules: CommaList = Field(
        [], description="NAME=PATH, repeatable: LoRA adapters, each served as MODEL:NAME (transformers, vllm)"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads for the engine")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    conv_template: str | None = Field(
        None,
        validation_alias=AliasChoices("conv_template", "chat_template"),
        description="chat template (Jinja text or a file) in place of the tokenizer's own",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    tool_call_parser: ToolCallParser | None = Field(
        None, description="how the model writes tool calls; none: not at all; default: as its chat template shows"
    )
    reasoning_parser: ReasoningParser | None = Field(
        None, description="how the model writes its thoughts; none: not at all; default: as its chat template shows"
    )
    upstream_url: str | None = Field(None, description="openai: the server to pass requests on to: http://host:8000/v1")
    upstream_model: str | None = Field(None, description="openai: its name for the model; default: the only one it has")
    upstream_api_key: str | None = Field(
        None, description="openai: better as TOKENBUS_UPSTREAM_API_KEY, since flags show in ps"
    )
    drain_timeout: float = Field(
        0.0, ge=0, description="s that running streams may go on after SIGTERM; then handed over"
    )
    hang_timeout: float = Field(60.0, gt=0, description="s without a step after which the worker gives up its lease")
    echo_interval_ms: float = Field(0.0, ge=0, description="echo: time of a step")
    echo_crash_word: str | None = Field(None, description="echo: end the process hard when a prompt holds this word")

    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="part of the GPU's memory for weights, keys and values, and what a step needs; of several models, "
        "for each, and by default they share 0.9",
    )
    enforce_eager: bool = Field(False, description="start sooner, without CUDA graphs and compiled layers; slower")
    tensor_parallel_size: int = Field(1, gt=0, description="GPUs that each layer is dealt out to")

    started_by: str = Field("", description="set by `tokenbus up`, which tells by it the workers that it started")

    host: str | None = Field(None, description="no meaning on a bus: nothing calls a worker")
    port: int | None = Field(None, description="no meaning on a bus: nothing calls a worker")
    worker_address: str | None = Field(None, description="no meaning on a bus: nothing calls a worker")
    controller_address: str | None = Field(None, description="no meaning on a bus: see --redis-url")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if flag := self.lacks(self.engine):
            raise StartupError(f"{flag} is not for --engine {self.engine}")
        if self.load_8bit and self.load_4bit:
            raise StartupError("--load-8bit and --load-4bit: choose one of them")
        passes_on = self.upstream_url is not None
        if self.engine == "openai" and not passes_on:
            raise StartupError("--upstream-url is needed: the server to pass requests on to")
        if passes_on and self.engine not in ("openai", "auto"):
            raise StartupError(f"--upstream-url is not for --engine {self.engine}")
        if passes_on and not (self.model_names or self.upstream_model):
            raise StartupError("--model-names is needed, or --upstream-model")
        if self.engine != "echo" and not passes_on and not self.model_path:
            raise StartupError("--model-path is needed: a folder, a hub id or a .gguf file")
        self._check_adapters()
        if len(self.model_path) > 1:
            self._check_several()
        return self

    def _check_adapters(self) -> None:
        names = [name for name, _ in self.adapters()]
        if "" in names:
            raise StartupError("--lora-modules: write NAME=PATH")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise StartupError(f"--lora-modules: two adapters are called '{twice}'")
        if names and len(self.model_path) > 1:
            raise StartupError("--lora-modules is for a worker with one model")

    def adapters(self) -> list[tuple[str, str]]:
        """Name and path of each."""
        found = [text.partition("=") for text in self.lora_modules]
        return [(name if path else "", path) for name, _, path in found]

    def _check_several(self) -> None:
        if self.model_names and len(self.model_names) != len(self.model_path):
            raise StartupError(
                f"--model-names: {len(self.model_path)} models and {len(self.model_names)} names; of several models, "
                "give a name for each"
            )
        names = [name for one in self.each() for name in one.names()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise StartupError(f"--model-path: two of them are called '{twice}'; give others by PATH=NAME")
        if "gpu_memory_utilization" in self.model_fields_set and self.gpu_memory_utilization * len(names) > 1:
            raise StartupError(f"--gpu-memory-utilization: that part for each of {len(names)} models is more than all")

    def each(self) -> list[Self]:
        """The settings of each model by itself."""
        if not self.model_path:
            return [self]
        found = [path_and_name(text) for text in self.model_path]
        if self.model_names:
            names = [self.model_names] if len(found) == 1 else [[name] for name in self.model_names]
        else:
            names = [[name] if name else [] for _, name in found]
        part = self.gpu_memory_utilization
        if "gpu_memory_utilization" not in self.model_fields_set:
            part /= len(found)
        return [
            self.model_copy(update={"model_path": [path], "model_names": own, "gpu_memory_utilization": part})
            for (path, _), own in zip(found, names, strict=True)
        ]

    @property
    def path(self) -> str | None:
        """Of one model."""
        return self.model_path[0] if self.model_path else None

    def lacks(self, engine: str) -> str | None:
        """A flag that was given and that the engine has no use for."""
        if self.engine_flags and engine not in WITH_FLAGS_OF_THEIR_OWN:
            return " ".join(self.engine_flags)
        fields = type(self).model_fields
        given = [name for name in NOT_FOR.get(engine, ()) if getattr(self, name) != fields[name].default]
        return f"--{given[0].replace('_', '-')}" if given else None

    def without_meaning(self) -> list[str]:
        """Flags of FastChat's worker that were given and change nothing here, for a warning."""
        fields = ("host", "port", "worker_address", "controller_address")
        return [f"--{name.replace('_', '-')}" for name in fields if name in self.model_fields_set]

    def weight_bits(self) -> int | None:
        return 8 if self.load_8bit else 4 if self.load_4bit else None

    def names(self) -> list[str]:
        """The model's name first, then its aliases; each once."""
        default = Path(self.path).name.removesuffix(".gguf") if self.path else self.upstream_model or "echo"
        return list(dict.fromkeys(self.model_names or [default]))
