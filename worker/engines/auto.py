"""Which engine serves a model where none was named: the fastest that is installed, and that does what was asked for."""

from collections.abc import Callable
from importlib.util import find_spec

from worker.engines.options import EngineOptions

Lacks = Callable[[str], str | None]


def choose(options: EngineOptions, lacks: Lacks) -> tuple[str, str]:
    """The engine's name, and why it. lacks: a flag that was given and that the engine does not have. Raises
    StartupError for a path with no model."""
    if options.upstream_url is not None:
        return "openai", "there is an --upstream-url"
    if options.model_path.lower().endswith(".gguf"):
        return _of_gguf(lacks)
    if find_spec("vllm") is None:
        return "transformers", "vLLM is not installed"
    import torch  # where there is vLLM there is torch, and the engine will import it anyway

    from worker.engines.checkpoint import Checkpoint

    if not torch.cuda.is_available():
        return "transformers", "there is no GPU for vLLM"
    if flag := lacks("vllm"):
        return "transformers", f"vLLM has no {flag}"
    if Checkpoint(options).task() != "generation":
        return "transformers", "the model does not generate"
    return "vllm", "it is installed, and there is a GPU"


def _of_gguf(lacks: Lacks) -> tuple[str, str]:
    from worker.engines.llama_server import is_installed

    if not is_installed():
        return "transformers", "llama.cpp is not installed"
    if flag := lacks("llamacpp"):
        return "transformers", f"llama.cpp has no {flag}"
    return "llamacpp", "it is installed, and the model is a .gguf file"
