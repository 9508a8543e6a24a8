"""The transformers engine: generation, embeddings and reranking with plain torch and transformers modules.

The kind of model at the path decides which stepper does the work (`generation.py`, `embedding.py` or `rerank.py`).
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from shared.errors import StartupError, one_line
from shared.logging import get_logger
from worker.engines.base import Engine, EngineInfo, EngineRequest, Output, SteppedEngine, Stepper
from worker.engines.figures import CacheFigures
from worker.engines.options import EngineOptions
from worker.engines.processes import end

log = get_logger(__name__)


def create(options: EngineOptions) -> Engine:
    return SteppedEngine(TransformersStepper(options))


class TransformersStepper:
    """Finds out what kind of model it is, and hands everything on to the stepper for that kind."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options

    def load(self) -> EngineInfo:
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # read at import; the GGUF reader's bar has no other switch
        # torch takes a second to import, and may be missing: neither concerns who only names this engine.
        try:
            from worker.engines.checkpoint import Checkpoint
            from worker.engines.embedding import EmbeddingStepper
            from worker.engines.generation import GenerationStepper
            from worker.engines.gguf_file import parsed_once
            from worker.engines.rerank import RerankStepper
        except ImportError as error:
            raise StartupError(
                f"the transformers engine needs torch and transformers (pip install 'tokenbus[transformers]'): {error}"
            ) from error
        with parsed_once():
            checkpoint = Checkpoint(self._options)
            steppers: dict[str, Callable[[Checkpoint, EngineOptions], Stepper]] = {
                "generation": GenerationStepper,
                "embedding": EmbeddingStepper,
                "rerank": RerankStepper,
            }
            if self._options.tensor_parallel_size > 1:
                checkpoint.check_dealing_out(self._options.tensor_parallel_size)
            if self._options.lora_modules and checkpoint.task() != "generation":
                raise StartupError("--lora-modules is for models that generate")
            self._stepper = steppers[checkpoint.task()](checkpoint, self._options)
            return self._stepper.load()

    def prepare(self, request: EngineRequest) -> Any:
        return self._stepper.prepare(request)

    def add(self, prepared: Any) -> None:
        self._stepper.add(prepared)

    def abort(self, request_id: str) -> None:
        self._stepper.abort(request_id)

    def abort_all(self) -> list[str]:
        return self._stepper.abort_all()

    def has_work(self) -> bool:
        return self._stepper.has_work()

    def step(self) -> list[Output]:
        try:
            return self._stepper.step()
        except Exception:
            _end_without_gpu()
            raise

    def cache(self) -> CacheFigures:
        return self._stepper.cache()


def _end_without_gpu() -> None:
    """After an illegal access or a failed assertion in a kernel CUDA computes nothing more for a process: it would take
    one job after another from workers that could do them."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        log.exception("engine step failed")
        end(f"the GPU works for this process no more: {one_line(error)}")
