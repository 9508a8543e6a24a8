"""Answers of a model that is dealt out, in a process of its own: torch has one process group for each.

python -m tests.engines.dealt_out '{"model_path": ..., "tensor_parallel_size": 2, ...}'
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.engines.driving import Stepping
from worker.engines.budget import StepBudget
from worker.engines.kv_cache import Row
from worker.engines.options import EngineOptions
from worker.engines.transformers_impl import TransformersStepper

PROMPTS = [[5] * length + [7, 9] for length in (1, 30, 3, 70, 2, 30)]
REQUESTS: list[dict[str, Any]] = [
    *({"payload": prompt, "max_tokens": 24} for prompt in PROMPTS),
    {"payload": PROMPTS[0], "max_tokens": 24, "temperature": 0.9, "seed": 3, "top_p": 0.8},
    {"payload": PROMPTS[2], "max_tokens": 12, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "logprobs": 1},
]
FEW_TOKENS = 200  # of a cache in which rows have to move, and to be computed again


def answers(engine: Stepping) -> dict[str, Any]:
    """With room for all, and with little."""
    found: dict[str, Any] = {"fingerprint": engine.info.fingerprint}
    engine.generation.budget = StepBudget(alone=64, beside=24)
    found["roomy"] = [answer.token_ids for answer in engine.crowd(REQUESTS)]
    found["ahead"] = token_after(engine, [5, 7, 9], [2, 300])
    engine.forget()
    engine.generation._cache = engine.generation._model.hold(FEW_TOKENS)
    found["short"] = [answer.token_ids for answer in engine.crowd(REQUESTS)]
    return found


@torch.inference_mode()
def token_after(engine: Stepping, prompt: list[int], drawn: list[int]) -> int:
    """The best one after a prompt and the last of the tokens that were drawn, whose number the scheduler does not know
    yet."""
    model, row = engine.generation._model, Row()
    engine.generation._cache.reserve(row, len(prompt) + 1)
    model.forward([(row, prompt)], [0])
    logits = model.forward([(row, [-len(drawn)])], [1], torch.tensor(drawn, device=model.device))
    engine.generation._cache.release(row)
    return int(logits.argmax())


def elsewhere(path: Path, **options: Any) -> dict[str, Any]:
    """Those of another process; what went wrong in it is said with its failure."""
    given = json.dumps({"model_path": str(path), "threads": 1, "slots": 4, **options})
    command = [sys.executable, "-m", "tests.engines.dealt_out", given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    stepper = TransformersStepper(EngineOptions(**json.loads(sys.argv[1])))
    print(json.dumps(answers(Stepping(stepper, stepper.load()))))
