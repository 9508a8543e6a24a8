"""The vLLM engine: its AsyncLLM in this process, with token ids in and out.

Prompts, text, tool calls and stop strings are read as for every engine (frontend.py), so that a client sees the same
and a stream may move to another worker. vLLM computes, schedules, draws and holds grammars; what it cannot do for a
sequence that another worker began is in `vllm_continued.py`.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn

import psutil
from llguidance import LLMatcher

from shared.errors import EngineFailed, InvalidRequest, StartupError, TokenbusError, one_line
from shared.messages import TokenLogprob
from worker.engines.adapter_files import fingerprint_of_adapter, rank_of
from worker.engines.base import Engine, EngineInfo, EngineRequest, Output
from worker.engines.completion import Completion
from worker.engines.figures import CacheFigures, HitRate
from worker.engines.frontend import Frontend
from worker.engines.grammar import as_lark
from worker.engines.logprobs import LEAST, Pieces, scored_token
from worker.engines.options import CPU_MEMORY_UTILIZATION, SLOTS, EngineOptions
from worker.engines.processes import bind, end
from worker.engines.seeds import seed_of
from worker.engines.streamed import Clock, StreamedEngine

CONTINUED = "worker.engines.vllm_continued:Continued"
EXTRA = "tokenbus"
ADAPTERS = 8  # in one step, if no --max-loras asks for more
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for
LOOK_S = 0.2
SPARE_BYTES = 64 * 2**20  # on a CPU: of blocks that are not full, and for prefixes
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
MULTIPROCESSING = "VLLM_WORKER_MULTIPROC_METHOD"


def create(options: EngineOptions) -> Engine:
    return StreamedEngine(VllmStreamer(options), options.hang_timeout)


class VllmStreamer:
    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._watcher: asyncio.Task[None] | None = None

    def load(self) -> EngineInfo:
        os.environ.setdefault(MULTIPROCESSING, "spawn")  # a fork would hold what is open here, Redis too
        bind(os.getpid())  # vLLM's processes would go on without it, and keep a GPU's memory
        os.environ.setdefault(RUNNER, "0")  # the second one takes processors of another kind than `vllm_continued`
        if self._options.threads is not None:
            os.environ.setdefault("OMP_NUM_THREADS", str(self._options.threads))
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        try:
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            from worker.engines.checkpoint import Checkpoint
        except ImportError as error:
            raise StartupError(f"the vllm engine needs vLLM (pip install 'tokenbus[vllm]'): {error}") from error
        checkpoint = Checkpoint(self._options)
        if checkpoint.task() != "generation":
            raise StartupError(f"--engine vllm serves models that generate; {self._options.model_path} holds none")
        tokenizer, outline = checkpoint.tokenizer(), checkpoint.outline()
        longest = checkpoint.max_model_len()
        self._figures = Figures()
        try:
            arguments = _engine_args(self._options)
            if current_platform.is_cpu():
                _spare_memory(arguments, checkpoint.config.get_text_config(), longest)
            self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[self._figures.logger])
        except StartupError:
            raise
        except Exception as error:  # in this process, or told of another one, whose own words are in the log
            raise StartupError(f"vLLM cannot serve {self._options.model_path}: {one_line(error)}") from error
        config = self._llm.vllm_config
        max_model_len, slots = config.model_config.max_model_len, config.scheduler_config.max_num_seqs
        self._frontend = Frontend(
            tokenizer,
            config.model_config.get_vocab_size(),
            max_model_len,
            checkpoint.eos_ids(outline, tokenizer),
            self._options,
        )
        fingerprint = checkpoint.fingerprint(outline, tokenizer)
        return EngineInfo(
            name="vllm",
            fingerprint=fingerprint,
            max_model_len=max_model_len,
            slots=slots,
            resumable=True,
            adapters={name: fingerprint_of_adapter(fingerprint, path) for name, path in self._options.lora_modules},
        )

    async def start(self) -> None:
        """An adapter that vLLM only loads when it is asked for, and cannot, would end its engine then."""
        for number, (name, _) in enumerate(self._options.lora_modules, 1):
            try:
                await self._llm.add_lora(self._adapter(number))
            except Exception as error:  # told of another process, whose own words are in the log
                end(f"vLLM cannot load the adapter {name}: {one_line(error)}")
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Without its engine this process has nothing to serve with, and cannot get another."""
        while not self._llm.errored:  # noqa: ASYNC110  # vLLM tells nobody
            await asyncio.sleep(LOOK_S)
        end("vLLM's engine has ended; what it said is above")

    def prepare(self, request: EngineRequest) -> Completion | Output:
        return self._frontend.prepare(request, Completion)

    async def stream(self, completion: Completion) -> AsyncIterator[Output]:
        # Where it comes back, the one before may not be forgotten yet.
        name = f"{completion.id}-{time.monotonic_ns()}"
        try:
            with self._figures.clock.works():
                async with aclosing(self._stream(completion, name)) as outputs:
                    async for output in outputs:
                        yield output
        except asyncio.CancelledError:
            await self._llm.abort(name)  # vLLM itself does not, of one that is on its way to its engine
            raise

    async def _stream(self, completion: Completion, name: str) -> AsyncGenerator[Output]:
        from vllm.inputs import tokens_input

        if completion.finish_reason is not None:  # what another worker made of it was all
            yield completion.output([], [])
            return
        try:
            async for made in self._llm.generate(
                tokens_input(list(completion.ids)),
                _sampling(completion),
                name,
                lora_request=self._adapter(completion.request.adapter),
            ):
                output = self._take(completion, made)
                if output is None:
                    continue
                yield output
                if output.ends:
                    return
                if made.finished:
                    raise EngineFailed(f"vLLM ended a sequence early: {made.outputs[0].finish_reason}")
        except TokenbusError:
            raise
        except Exception as error:
            cause = error.__cause__ or error  # vLLM wraps what goes wrong with one request
            if isinstance(cause, ValueError | _client_error()):
                raise InvalidRequest(one_line(cause)) from error
            if self._llm.errored:
                await asyncio.sleep(2 * LOOK_S)  # this process ends meanwhile
            raise EngineFailed(f"The engine failed: {one_line(cause)}") from error

    def _adapter(self, number: int) -> Any:
        from vllm.lora.request import LoRARequest

        if not number:
            return None
        name, folder = self._options.lora_modules[number - 1]
        return LoRARequest(name, number, str(Path(folder).expanduser().resolve()))

    def _take(self, completion: Completion, made: Any) -> Output | None:
        if completion.cached is None:
            completion.cached = min(made.num_cached_tokens or 0, completion.prompt_tokens)
        if completion.scores_prompt:
            ids, scores = completion.ids[1:], made.prompt_logprobs[1:]
            pieces, top = self._frontend.pieces, completion.params.logprobs or 0
            completion.score_prompt(
                [_scored(token_id, score, top, pieces) for token_id, score in zip(ids, scores, strict=True)]
            )
            completion.scored()
        taken: list[int] = []
        logprobs: list[TokenLogprob] = []
        result = made.outputs[0]
        for place, token_id in enumerate(result.token_ids):
            if completion.finish_reason is not None:
                break
            taken.append(token_id)
            if completion.params.logprobs is not None:
                is_end = completion.ends_with(token_id)
                score = result.logprobs[place]
                logprobs.append(_scored(token_id, score, completion.params.logprobs, self._frontend.pieces, is_end))
            completion.push(token_id)
        if not taken and completion.finish_reason is None:
            return None
        return completion.output(taken, logprobs)

    def accepts(self) -> bool:
        return True

    def stalled_for(self) -> float:
        return self._figures.clock.stalled_for()

    def step_ms(self) -> float:
        return self._figures.clock.step_ms()

    def cache(self) -> CacheFigures:
        return self._figures.cache()

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        await asyncio.to_thread(self._llm.shutdown, 0)  # nothing is left to compute


class Figures:
    """What vLLM tells after each of its steps."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._hits = HitRate()
        self._usage = 0.0

    def cache(self) -> CacheFigures:
        return CacheFigures(self._usage, self._hits.share())

    def logger(self, *_: Any) -> "Figures":
        """A factory of StatLoggerBase, by vLLM's own words an interface that may change: no more of it is used."""
        return self

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        self.clock.step()
        if scheduler_stats is not None:
            self._usage = scheduler_stats.kv_cache_usage
            found = scheduler_stats.prefix_cache_stats
            if found.queries:
                self._hits.add(found.queries, found.hits)

    def log_engine_initialized(self) -> None:
        pass

    def log(self) -> None:
        pass


def _engine_args(options: EngineOptions) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise StartupError(f"vLLM's flags: {message}")

    parser = AsyncEngineArgs.add_cli_args(Parser(add_help=False, allow_abbrev=False))
    given = parser.parse_args(options.engine_flags)
    given.model = options.model_path  # from the first: with HF_HUB_OFFLINE it is looked up at once
    arguments = AsyncEngineArgs.from_cli_args(given)
    arguments.tensor_parallel_size = options.tensor_parallel_size
    arguments.gpu_memory_utilization = options.gpu_memory_utilization
    arguments.enforce_eager = options.enforce_eager
    arguments.trust_remote_code = options.trust_remote_code
    arguments.revision = options.revision
    arguments.max_model_len = options.max_model_len
    arguments.max_num_seqs = options.slots
    arguments.dtype = options.dtype or "auto"
    if options.lora_modules:
        _make_room_for_adapters(arguments, [path for _, path in options.lora_modules])
    arguments.disable_log_stats = True  # its own metrics, which nobody reads here: 8% of this process
    arguments.logits_processors = [*(arguments.logits_processors or []), CONTINUED]
    # The grammars of all engines are llguidance's.
    arguments.structured_outputs_config.backend = "guidance"
    return arguments


def _make_room_for_adapters(arguments: Any, folders: list[str]) -> None:
    rank = max(map(rank_of, folders))
    arguments.enable_lora = True
    arguments.max_loras = max(arguments.max_loras, min(len(folders), ADAPTERS))
    arguments.max_lora_rank = max(arguments.max_lora_rank, next((size for size in RANKS if size >= rank), rank))
    arguments.max_cpu_loras = arguments.max_cpu_loras or max(len(folders), arguments.max_loras)


def _spare_memory(arguments: Any, config: Any, longest: int) -> None:
    """vLLM would take nearly all memory of a machine for keys and values, and write zeros into it (20 GB in 38 s)."""
    arguments.max_num_seqs = arguments.max_num_seqs or SLOTS
    if arguments.kv_cache_memory_bytes is None:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        most = 2 * config.num_hidden_layers * heads * size * 4 * longest * arguments.max_num_seqs
        free = int(psutil.virtual_memory().available * CPU_MEMORY_UTILIZATION)
        arguments.kv_cache_memory_bytes = min(most + SPARE_BYTES, free)


def _sampling(completion: Completion) -> Any:
    """What is left to be made of it, in vLLM's words."""
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
    from vllm.sampling_params import SamplingParams as Theirs

    asked, made = completion.params, completion.completion_tokens
    scores = asked.logprobs if completion.scores_prompt else None
    lark = None if completion.grammar is None else as_lark(completion.grammar)
    extra = _extra(completion, lark)
    bias = {**asked.logit_bias, **dict.fromkeys(completion.never, -1000.0)}
    return Theirs(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        seed=seed_of(asked, completion.request.choice, made) if asked.seeded else None,
        presence_penalty=asked.presence_penalty if extra is None else 0.0,
        frequency_penalty=asked.frequency_penalty if extra is None else 0.0,
        repetition_penalty=asked.repetition_penalty,
        logit_bias=bias or None,
        max_tokens=max(1, completion.tokens_left),
        min_tokens=min(max(0, asked.min_tokens - made), completion.tokens_left),
        ignore_eos=True,  # what ends a sequence is known here, and is among these
        stop_token_ids=completion.ends,
        logprobs=asked.logprobs,
        prompt_logprobs=scores,
        structured_outputs=None if lark is None or extra is not None else StructuredOutputsParams(grammar=lark),
        extra_args=extra,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )


def _extra(completion: Completion, lark: str | None) -> dict[str, Any] | None:
    """For the processor in vLLM's own process: what it takes for prompt alone of a sequence that another worker began,
    a grammar with special tokens, which it refuses, and one beside logprobs, which it would give of what the grammar
    leaves. vLLM's own way is faster, where it can go it."""
    asked, made = completion.params, completion.ids[completion.prompt_tokens :]
    is_strange = lark is not None and (asked.logprobs is not None or LLMatcher.validate_grammar(lark) != "")
    is_penalized = bool(asked.presence_penalty or asked.frequency_penalty)
    if not is_strange and not (made and (is_penalized or lark is not None)):
        return None
    return {
        EXTRA: {
            "token_ids": made,
            "presence_penalty": asked.presence_penalty,
            "frequency_penalty": asked.frequency_penalty,
            "grammar": completion.grammar,
            "ends": completion.ends,
            "eos_ids": completion.eos_ids,
        }
    }


def _scored(token_id: int, score: Mapping[int, Any], top: int, pieces: Pieces, is_end: bool = False) -> TokenLogprob:
    best = sorted(score.items(), key=lambda item: item[1].rank)
    told = [(one, max(LEAST, value.logprob)) for one, value in best if value.rank <= top]
    return scored_token(token_id, max(LEAST, score[token_id].logprob), told, pieces, is_end)


def _client_error() -> type[Exception]:
    """vLLM's for what a client got wrong; before 0.26 it was a ValueError."""
    from vllm import exceptions

    found: type[Exception] = getattr(exceptions, "VLLMClientError", ValueError)
    return found
