"""The flags of `python -m worker`: FastChat's, with the same meaning, and our own."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, model_validator

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


class WorkerSettings(ProcessSettings):
    """A Tokenbus worker: one model, one engine, one outbound connection (Redis). Listens on no port."""

    model_path: str | None = Field(None, description="a folder, a hub id or a .gguf file")
    model_names: CommaList = Field(
        [],
        validation_alias=AliasChoices("model_names", "served_model_name"),
        description="a,b: the model's name and its aliases, case-sensitive; default: the folder's name",
    )
    engine: EngineName = Field("transformers", description="transformers, or echo (no model, for tests)")
    device: Literal["cuda", "cpu", "mps"] | None = Field(None, description="default: the best that is there")
    dtype: Literal["float32", "float16", "bfloat16", "auto"] | None = Field(
        None, description="default: the model's own; on a CPU bfloat16 where that is faster, else float32"
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
    drain_timeout: float = Field(
        0.0, ge=0, description="s that running streams may go on after SIGTERM; then handed over"
    )
    hang_timeout: float = Field(60.0, gt=0, description="s without a step after which the worker gives up its lease")
    echo_interval_ms: float = Field(0.0, ge=0, description="echo: time of a step")
    echo_crash_word: str | None = Field(None, description="echo: end the process hard when a prompt holds this word")

    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="part of the GPU's memory for weights, keys and values, and what a step needs"
    )
    enforce_eager: bool = Field(False, description="start sooner, without CUDA graphs and compiled layers; slower")
    tensor_parallel_size: int = Field(1, gt=0, description="not implemented yet above 1")

    host: str | None = Field(None, description="no meaning on a bus: nothing calls a worker")
    port: int | None = Field(None, description="no meaning on a bus: nothing calls a worker")
    worker_address: str | None = Field(None, description="no meaning on a bus: nothing calls a worker")
    controller_address: str | None = Field(None, description="no meaning on a bus: see --redis-url")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tensor_parallel_size > 1:
            raise StartupError("--tensor-parallel-size is not implemented yet")
        if self.load_8bit and self.load_4bit:
            raise StartupError("--load-8bit and --load-4bit: choose one of them")
        if self.engine in ("vllm", "llamacpp", "openai", "auto"):
            raise StartupError(f"--engine {self.engine} is not implemented yet; there are transformers and echo")
        if self.engine != "echo" and not self.model_path:
            raise StartupError("--model-path is needed: a folder, a hub id or a .gguf file")
        return self

    def without_meaning(self) -> list[str]:
        """Flags of FastChat's worker that were given and change nothing here, for a warning."""
        fields = ("host", "port", "worker_address", "controller_address")
        return [f"--{name.replace('_', '-')}" for name in fields if name in self.model_fields_set]

    def weight_bits(self) -> int | None:
        return 8 if self.load_8bit else 4 if self.load_4bit else None

    def names(self) -> list[str]:
        """The model's name first, then its aliases; each once."""
        default = Path(self.model_path).name.removesuffix(".gguf") if self.model_path else "echo"
        return list(dict.fromkeys(self.model_names or [default]))
