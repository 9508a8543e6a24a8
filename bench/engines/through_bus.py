"""What the bus costs an engine that batches by itself: its tokens per second driven directly, and through the bus.

python -m bench.engines.through_bus --engine llamacpp --model-path FILE.gguf --streams 1,4
python -m bench.engines.through_bus --engine vllm --model-path FOLDER --streams 1,32     (where vLLM is installed)

Rounds of both take turns, with the same requests, and are compared in pairs. In each, so many streams at once take one
request after the other from the list: the replies have different lengths, so that requests come and go all the time.
"""

import argparse
import asyncio
import json
import random
import shlex
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.loadgen import Connection
from bench.reply import Reply
from bench.tokenbus import Bus

MODEL = "model"
FLAGS = ("--max-model-len", "1024")


@dataclass(frozen=True, slots=True)
class Round:
    """tokens_per_s of all streams together; first_ms from a request to its first token, in the middle of them."""

    tokens_per_s: float
    first_ms: float


@dataclass(frozen=True, slots=True)
class Shape:
    prompt: int
    output: int

    def requests(self, count: int, chance: random.Random) -> list[tuple[list[int], int]]:
        """Of random tokens: no two share a prefix. Replies have from half as many tokens as `output` to half as many
        more."""
        lengths = range(self.output // 2, self.output + self.output // 2 + 1)
        return [(chance.choices(range(500, 5000), k=self.prompt), chance.choice(lengths)) for _ in range(count)]


Stream = Callable[[list[int], int], Awaitable[tuple[float, int]]]  # when the first token came, and how many did


async def measure(stream: Stream, streams: int, requests: Sequence[tuple[list[int], int]]) -> Round:
    left, firsts, tokens = iter(requests), [], 0

    async def client() -> None:
        nonlocal tokens
        for prompt, output in left:
            asked = time.perf_counter()
            first, made = await stream(prompt, output)
            firsts.append(first - asked)
            tokens += made

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(streams)))
    return Round(tokens / (time.perf_counter() - began), statistics.median(firsts) * 1000)


# -- directly ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def vllm_directly(options: argparse.Namespace) -> AsyncIterator[Stream]:
    """vLLM's AsyncLLM in this process, with its own text."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(model=options.model_path, max_model_len=1024, max_num_seqs=max(options.streams))
    for name, value in options.engine_arguments.items():
        setattr(arguments, name, value)
    llm = AsyncLLM.from_engine_args(arguments)
    count = 0

    async def stream(prompt: list[int], output: int) -> tuple[float, int]:
        nonlocal count
        count += 1
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        first, tokens = 0.0, 0
        async for made in llm.generate(tokens_input(prompt), params, f"direct-{count}"):
            first = first or time.perf_counter()
            tokens += len(made.outputs[0].token_ids)
        return first, tokens

    try:
        yield stream
    finally:
        llm.shutdown(timeout=0)


@asynccontextmanager
async def llama_server_directly(options: argparse.Namespace) -> AsyncIterator[Stream]:
    """By its own HTTP, as the engine asks it, with the same settings."""
    from worker.engines.llama_server import LlamaServer, Settings

    slots = max(options.streams)
    server = LlamaServer(Settings(options.model_path, slots, 1024, options.threads or 1), ())
    await asyncio.to_thread(server.start)
    async with server.http() as http:

        async def stream(prompt: list[int], output: int) -> tuple[float, int]:
            body = {"prompt": prompt, "n_predict": output, "stream": True, "temperature": 0, "ignore_eos": True}
            first, last = 0.0, ""
            async with http.stream("POST", "/completion", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        first, last = first or time.perf_counter(), line
            return first, int(json.loads(last.removeprefix("data:"))["tokens_predicted"])

        try:
            yield stream
        finally:
            await asyncio.to_thread(server.stop)


# -- through the bus ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def through_bus(options: argparse.Namespace) -> AsyncIterator[Stream]:
    flags = ["--engine", options.engine, "--model-path", options.model_path, "--model-names", MODEL, *FLAGS]
    flags += ["--max-num-seqs", str(max(options.streams))]
    if options.threads:
        flags += ["--threads", str(options.threads)]
    flags += options.flags
    async with Bus.started() as bus:
        url = await bus.gateway()
        await bus.worker(*flags)
        await bus.ready(url, {MODEL: 1})
        address = urlsplit(url)
        idle: list[Connection] = []

        async def stream(prompt: list[int], output: int) -> tuple[float, int]:
            body = {"model": MODEL, "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True}
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            content = json.dumps(body).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            while idle and idle[-1].transport is None:  # the gateway has closed it, in the other's turn
                idle.pop()
            if idle:
                connection = idle.pop()
            else:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, address.hostname or "", address.port or 80)
            reply = Reply(streamed=True, endpoint="completions")
            await connection.ask(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content, reply)
            if failure := reply.failure():
                raise RuntimeError(f"{failure}")
            idle.append(connection)
            return reply.arrivals[0][0], reply.tokens or 0

        try:
            yield stream
        finally:
            for connection in idle:
                connection.close()


DIRECTLY: dict[str, Callable[[argparse.Namespace], Any]] = {
    "vllm": vllm_directly,
    "llamacpp": llama_server_directly,
}


async def run(options: argparse.Namespace) -> None:
    shape, chance = Shape(options.prompt, options.output), random.Random(1)
    async with DIRECTLY[options.engine](options) as direct, through_bus(options) as bus:
        for streams in options.streams:
            found: dict[str, list[Round]] = {"directly": [], "through the bus": []}
            for number in range(options.rounds + 1):  # the first warms up
                requests = shape.requests(streams * options.each, chance)
                turns = [("directly", direct), ("through the bus", bus)]
                for name, stream in turns if number % 2 else reversed(turns):
                    await asyncio.sleep(options.pause)
                    made = await measure(stream, streams, requests)
                    if number:
                        found[name].append(made)
            speeds = {name: statistics.median(one.tokens_per_s for one in made) for name, made in found.items()}
            firsts = {name: statistics.median(one.first_ms for one in made) for name, made in found.items()}
            pairs = zip(found["through the bus"], found["directly"], strict=True)
            ratios = [bus_made.tokens_per_s / made.tokens_per_s for bus_made, made in pairs]
            print(
                f"{options.engine}, {streams} streams, {shape.prompt} in, {shape.output} out: "
                + ", ".join(f"{name} {speeds[name]:.1f} tokens/s, first {firsts[name]:.1f} ms" for name in found)
                + f"; {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engines.through_bus", description=__doc__)
    add = parser.add_argument
    add("--engine", choices=sorted(DIRECTLY), required=True)
    add("--model-path", required=True)
    add("--streams", type=lambda text: [int(one) for one in text.split(",")], default=[1, 4])
    add("--prompt", type=int, default=128)
    add("--output", type=int, default=128)
    add("--each", type=int, default=4, help="requests of each stream in a round")
    add("--rounds", type=int, default=3)
    add(
        "--pause",
        type=float,
        default=4,
        help="s before each: vLLM's idle processes spin for 3 s on a CPU",
    )
    add("--threads", type=int, help="of the engine, on a CPU")
    add("--engine-arguments", type=json.loads, default={}, help="of vLLM driven directly, JSON")
    add("--flags", type=shlex.split, default=[], help="of the worker, in one argument: --flags='--a 1 --b'")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
