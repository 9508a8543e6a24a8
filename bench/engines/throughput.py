"""Tokens per second of the transformers engine, its steps driven directly.

python -m bench.engines.throughput --shape qwen2.5-7b --device cuda --streams 1,16,64,256 --prompt 128,1024
python -m bench.engines.throughput --shape smollm2-135m --device cpu --streams 1,8,32 --against-generate
python -m bench.engines.random_model qwen2.5-7b FOLDER
python -m bench.engines.throughput --model-path FOLDER --tensor-parallel-size 2
python -m bench.engines.throughput --draw docs/engines.svg FILE.json ...
"""

import argparse
import os
import random
import time
from pathlib import Path

import torch

from bench.engines.random_model import SHAPES, RandomCheckpoint
from bench.engines.results import ALONE, OURS, Figure, Results, draw, show
from shared.garbage import spare_what_is_loaded
from shared.messages import SamplingParams
from worker.engines.base import EngineRequest
from worker.engines.checkpoint import Checkpoint
from worker.engines.generation import GenerationStepper
from worker.engines.options import EngineOptions
from worker.engines.sequence import Sequence


class Requests:
    """Of random tokens: no two share a prefix."""

    def __init__(self, stepper: GenerationStepper) -> None:
        self._stepper = stepper
        self._chance = random.Random(1)
        self._count = 0

    def add(self, prompt: int, output: int, temperature: float = 0.0) -> None:
        self._count += 1
        ids = self._chance.choices(range(2, 256), k=prompt)
        params = SamplingParams(seed=self._count, temperature=temperature, max_tokens=output, ignore_eos=True)
        request = EngineRequest(f"r{self._count}", "completion", {"prompt": ids}, params)
        prepared = self._stepper.prepare(request)
        assert isinstance(prepared, Sequence)
        self._stepper.add(prepared)

    def finish(self) -> tuple[int, float]:
        """Steps until all are answered. Tokens, and the longest step in s."""
        tokens, longest = 0, 0.0
        last = time.perf_counter()
        while self._stepper.has_work():
            tokens += sum(len(one.token_ids) for one in self._stepper.step())
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        return tokens, longest


def run(requests: Requests, given: tuple[int, int, int, float]) -> tuple[float, float]:
    """Tokens per second, and the longest step in s."""
    streams, prompt, output, temperature = given
    for _ in range(streams):
        requests.add(prompt, output, temperature)
    began = time.perf_counter()
    tokens, longest = requests.finish()
    assert tokens == streams * output, tokens
    return tokens / (time.perf_counter() - began), longest


def joining(stepper: GenerationStepper, requests: Requests, streams: int, prompt: int) -> float:
    """The longest step in s of running streams while a long prompt joins them."""
    for _ in range(streams):
        requests.add(128, 64)
    for _ in range(16):
        stepper.step()
    requests.add(prompt, 8)
    return requests.finish()[1]


def generate(checkpoint: Checkpoint, prompt: int, output: int) -> float:
    """Tokens per second of transformers' own loop, for one prompt."""
    model = checkpoint.causal_model()
    ids = torch.tensor([random.Random(1).choices(range(2, 256), k=prompt)], device=model.device)
    seconds = 0.0
    for tokens in (2, output):
        began = time.perf_counter()
        given = {"attention_mask": torch.ones_like(ids), "min_new_tokens": tokens, "max_new_tokens": tokens}
        model.generate(ids, **given, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        seconds = time.perf_counter() - began
    return output / seconds


def measure(given: argparse.Namespace) -> Results:
    streams, prompts = ([int(one) for one in listed.split(",")] for listed in (given.streams, given.prompt))
    options = EngineOptions(
        model_path=str(given.model_path or given.shape),
        device=given.device,
        dtype=given.dtype,
        max_model_len=given.max_model_len,
        slots=max(streams) + bool(given.joining),
        gpu_memory_utilization=given.gpu_memory_utilization,
        tensor_parallel_size=given.tensor_parallel_size,
        threads=given.threads,
    )
    if given.model_path:
        checkpoint = Checkpoint(options)
    else:
        checkpoint = RandomCheckpoint(given.shape, given.device, getattr(torch, given.dtype), given.max_model_len)
    figures = []
    if given.against_generate:
        figures += [
            Figure(ALONE, 1, prompt, given.output, generate(checkpoint, prompt, given.output)) for prompt in prompts
        ]
    began = time.perf_counter()
    stepper = GenerationStepper(checkpoint, options)
    stepper.load()
    spare_what_is_loaded()  # as a worker does
    print(f"loaded in {time.perf_counter() - began:.1f} s; cache of {stepper._cache.space.tokens} tokens", flush=True)
    requests = Requests(stepper)
    for count in streams:
        for prompt in prompts:
            run(requests, (count, prompt, 4, given.temperature))
            speed, gap = run(requests, (count, prompt, given.output, given.temperature))
            figures.append(Figure(OURS, count, prompt, given.output, speed, gap * 1000))
            print(figures[-1], flush=True)
    if given.joining:
        for count in streams:
            joining(stepper, requests, count, given.joining)
            gap = joining(stepper, requests, count, given.joining)
            print(f"{count} streams wait for at most {gap * 1000:.0f} ms while {given.joining} tokens join them")
    if given.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        print(f"{(total - free) / total:.1%} of the GPU's memory in use, {options.gpu_memory_utilization:.0%} asked")
        machine = f"{given.tensor_parallel_size} x {torch.cuda.get_device_name()}"
    else:
        machine = f"{torch.get_num_threads()} of {os.cpu_count()} cores, {given.dtype}"
    return Results(machine, options.model_path, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-7b")
    parser.add_argument("--model-path", type=Path, help="a model that lies there, in the place of a shape's random one")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="with --model-path")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--streams", default="1,16,64,256")
    parser.add_argument("--prompt", default="128")
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--joining", type=int, help="tokens of a prompt that comes while the others are answered")
    parser.add_argument("--threads", type=int, help="on a CPU")
    parser.add_argument("--against-generate", action="store_true", help="transformers' own loop in the same run")
    parser.add_argument("--save", type=Path, help="the figures, as JSON")
    parser.add_argument("--draw", type=Path, help="a plot of figures that were saved, and measure nothing")
    parser.add_argument("files", nargs="*", type=Path, help="that are drawn")
    given = parser.parse_args()
    if given.draw:
        draw([Results.read(file) for file in given.files], given.draw)
        return
    if given.tensor_parallel_size > 1 and not given.model_path:
        parser.error("--tensor-parallel-size: with --model-path")
    if given.tensor_parallel_size > 1 and given.against_generate:
        parser.error("--tensor-parallel-size: not with --against-generate")
    if given.threads:
        torch.set_num_threads(given.threads)
    results = measure(given)
    show(results)
    if given.save:
        results.save(given.save)


if __name__ == "__main__":
    main()
