"""Tokens per second of the transformers engine, its steps driven directly.

python -m bench.engines.throughput --shape qwen2.5-7b --device cuda --streams 1,16,64,256 --prompt 128 --output 128
"""

import argparse
import random
import time

import torch

from bench.engines.random_model import SHAPES, RandomCheckpoint
from shared.messages import SamplingParams
from worker.engines.base import EngineRequest
from worker.engines.generation import GenerationStepper
from worker.engines.options import EngineOptions
from worker.engines.sequence import Sequence


def run(stepper: GenerationStepper, streams: int, prompt: int, output: int, temperature: float) -> tuple[float, float]:
    """Tokens per second, and the longest gap between two steps in s."""
    chance = random.Random(f"{streams} {output}")  # no two runs share a prefix
    for number in range(streams):
        ids = chance.choices(range(2, 256), k=prompt)
        params = SamplingParams(seed=number, temperature=temperature, max_tokens=output, ignore_eos=True)
        prepared = stepper.prepare(EngineRequest(f"r{number}", "completion", {"prompt": ids}, params))
        assert isinstance(prepared, Sequence)
        stepper.add(prepared)
    tokens, longest = 0, 0.0
    began = last = time.perf_counter()
    while stepper.has_work():
        tokens += sum(len(one.token_ids) for one in stepper.step())
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert tokens == streams * output, tokens
    return tokens / (time.perf_counter() - began), longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--streams", default="1,16,64,256")
    parser.add_argument("--prompt", default="128")
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-model-len", type=int, default=4096)
    given = parser.parse_args()
    streams, prompts = ([int(one) for one in listed.split(",")] for listed in (given.streams, given.prompt))
    began = time.perf_counter()
    checkpoint = RandomCheckpoint(given.shape, given.device, getattr(torch, given.dtype), given.max_model_len)
    options = EngineOptions(slots=max(streams))
    stepper = GenerationStepper(checkpoint, options)
    stepper.load()
    print(f"loaded in {time.perf_counter() - began:.1f} s; cache of {stepper._cache.space.tokens} tokens", flush=True)
    for count in streams:
        for prompt in prompts:
            run(stepper, count, prompt, 4, given.temperature)
            speed, gap = run(stepper, count, prompt, given.output, given.temperature)
            work = f"{count:4d} streams, {prompt} in {given.output} out"
            print(f"{work}: {speed:8.0f} tokens/s, longest step {gap * 1000:.0f} ms", flush=True)
    if given.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        print(f"{(total - free) / total:.1%} of the GPU's memory in use, {options.gpu_memory_utilization:.0%} asked")


if __name__ == "__main__":
    main()
