"""What an engine is told at its creation; each engine reads the fields that concern it."""

from dataclasses import dataclass

SLOTS = 32  # where nothing else is asked for, and an engine knows no better


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """None leaves the choice to the engine. What an engine cannot honour is refused before it is created.

    model_path: a directory, a file.gguf or a hub id. chat_template: a Jinja text or a file that holds one.
    slots: sequences that run together. threads: for computing, on a CPU. weight_bits: 8 or 4. num_gpus: that the
    layers are spread over, each of which may hold weights of max_gpu_memory ('20GiB'). gpu_memory_utilization: the part
    of a GPU's memory that weights, cache and steps may take. enforce_eager: start sooner, without CUDA graphs and
    compiled layers. tool_call_parser, reasoning_parser: names of worker.engines.dialects.
    """

    model_path: str = ""
    device: str | None = None
    dtype: str | None = None
    max_model_len: int | None = None
    slots: int | None = None
    threads: int | None = None
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    weight_bits: int | None = None
    num_gpus: int = 1
    max_gpu_memory: str | None = None
    revision: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    echo_interval_ms: float = 0.0
    echo_crash_word: str | None = None
