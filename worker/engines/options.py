"""What an engine is told at its creation; each engine reads the fields that concern it."""

import os
from dataclasses import dataclass

SLOTS = 32  # where nothing else is asked for, and an engine knows no better
CPU_MEMORY_UTILIZATION = 0.5  # of what is free, for keys and values


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """None leaves the choice to the engine. What an engine cannot honour is refused before it is created.

    model_path: a directory, a file.gguf or a hub id. chat_template: a Jinja text or a file that holds one.
    slots: sequences that run together. threads: for computing, on a CPU. weight_bits: 8 or 4. num_gpus: that the
    layers are spread over, each of which may hold weights of max_gpu_memory ('20GiB'). tensor_parallel_size: GPUs that
    each layer is dealt out to. lora_modules: names and folders of adapters. gpu_memory_utilization: the part of a GPU's
    memory that weights, cache and steps may take. enforce_eager: start sooner, without CUDA graphs and compiled layers.
    tool_call_parser, reasoning_parser: names of worker.engines.dialects. engine_flags: as they were typed, for vLLM.
    upstream_*: the server that requests are passed on to, its address ending with /v1, and its own name for the model.
    hang_timeout: s without a step, after which the worker takes it for hanging.
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
    tensor_parallel_size: int = 1
    lora_modules: tuple[tuple[str, str], ...] = ()
    revision: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    engine_flags: tuple[str, ...] = ()
    upstream_url: str | None = None
    upstream_model: str | None = None
    upstream_api_key: str | None = None
    hang_timeout: float = 60.0
    echo_interval_ms: float = 0.0
    echo_crash_word: str | None = None


def spare_threads(processes: int = 1) -> int:
    """One core is left to the event loop: on two shared cores a second thread made steps 3 times slower, not faster,
    because each part of a step waits for the slower thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (cores - 1) // processes)
