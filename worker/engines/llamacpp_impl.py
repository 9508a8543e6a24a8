"""The llama.cpp engine: GGUF files, by a llama-server of the worker's own, with token ids in and out.

Prompts, text, tool calls and stop strings are read as for every engine (frontend.py); llama-server computes, batches,
draws and holds grammars. It is another process, so that what ends it ends no stream: its requests go on elsewhere, or
here when it is back.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2

from shared.errors import (
    ContextLengthExceeded,
    EngineFailed,
    EngineUnable,
    InvalidRequest,
    StartupError,
    TokenbusError,
    UnsupportedModel,
    UnsupportedParameter,
    one_line,
)
from shared.messages import TokenLogprob
from worker.engines.base import Engine, EngineInfo, EngineRequest, Output
from worker.engines.completion import Completion
from worker.engines.figures import CacheFigures, HitRate
from worker.engines.frontend import Frontend
from worker.engines.gguf_head import Head, head_of
from worker.engines.grammar import as_lark, written_plainly
from worker.engines.llama_server import LOOK_EVERY_S, LlamaServer, Settings
from worker.engines.logprobs import LEAST, scored_token
from worker.engines.openai_answers import embedded, ranked
from worker.engines.openai_words import inputs
from worker.engines.options import EngineOptions, spare_threads
from worker.engines.seeds import seed_of
from worker.engines.sse import events
from worker.engines.streamed import Clock, StreamedEngine
from worker.engines.token_bytes import TokenBytes

# Tokens of a prompt, after which llama-server tells that it moves, and hears that nobody waits any more. Its own 2,048
# are a minute of a small model on one core.
CPU_BATCH = 128
SLOTS = 4  # of a CPU; each has its own part of the memory for keys and values
LOADING = 503
SAMPLES, SAMPLE_BYTES = 32, 65_536
CHARACTER = 4  # bytes, and so tokens, at most
UNTOLD = {"logprob": LEAST, "top_logprobs": []}
# As the other engines draw, in another order: to cut to the best first leaves less to scale and to sort.
SAMPLERS = ["penalties", "top_k", "temperature", "top_p", "min_p"]


def create(options: EngineOptions) -> Engine:
    head = head_of(options.model_path)
    streamer = LlamaEncoder(options, head) if head.pools else LlamaStreamer(options)
    return StreamedEngine(streamer, options.hang_timeout)


class Served:
    """What is served by a llama-server."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._path = Path(options.model_path).expanduser()
        self._clock = Clock()
        self._http: httpx2.AsyncClient | None = None

    def _start_server(self, longest: int, slots: int, *, batch: int | None, embedding: bool = False) -> None:
        """The last of a load: what fails before it leaves nothing running."""
        options = self._options
        settings = Settings(
            str(self._path),
            slots,
            longest,
            options.threads or spare_threads(),
            batch=batch,
            embedding=embedding,
            on_cpu=options.device == "cpu",
        )
        self._server = LlamaServer(settings, options.engine_flags)
        self._server.start()

    async def start(self) -> None:
        self._http = self._server.http()

    def accepts(self) -> bool:
        return self._server.is_up

    async def _sent(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        """A response that is good, and not read yet. Waits for a llama-server that is being started again."""
        while True:
            try:
                assert self._http is not None
                response = await self._http.send(self._http.build_request("POST", path, json=body), stream=True)
                if response.is_success:
                    return response
                said = await response.aread()
                await response.aclose()
                if response.status_code != LOADING:
                    raise _error_of(response.status_code, said)
            except httpx2.ConnectError:
                self._server.miss()
            except httpx2.HTTPError as error:
                raise _lost(error) from error
            self._clock.step()  # it is not there, which is not to hang: it is started again, or this worker ends
            await asyncio.sleep(LOOK_EVERY_S)

    def stalled_for(self) -> float:
        return self._clock.stalled_for()

    def step_ms(self) -> float:
        return 0.0  # a chunk is one of many sequences, which say nothing of steps

    def cache(self) -> CacheFigures:
        return CacheFigures()

    async def stop(self) -> None:
        if self._http is not None:
            await self._http.aclose()
        await asyncio.to_thread(self._server.stop)


class LlamaStreamer(Served):
    """Of a model that generates."""

    def load(self) -> EngineInfo:
        try:
            from worker.engines.checkpoint import Checkpoint
            from worker.engines.gguf_file import parsed_once
        except ImportError as error:
            raise StartupError(
                f"the llamacpp engine reads prompts with transformers (pip install 'tokenbus[llamacpp]'): {error}"
            ) from error
        with parsed_once():
            checkpoint = Checkpoint(self._options)
            tokenizer, longest = checkpoint.tokenizer(), checkpoint.max_model_len()
            eos_ids = checkpoint.eos_ids(checkpoint.outline(), tokenizer)
        slots = self._options.slots or SLOTS
        vocabulary = len(tokenizer)
        self._hits = HitRate()
        self._frontend = Frontend(tokenizer, vocabulary, longest, eos_ids, self._options, as_known=written_plainly)
        self._bytes = TokenBytes(self._frontend.bytes_of_tokens, vocabulary)
        parsers = (self._options.tool_call_parser, self._options.reasoning_parser)
        fingerprint = fingerprint_of_file(self._path, tokenizer.chat_template, *parsers)
        self._start_server(longest, slots, batch=CPU_BATCH if checkpoint.device.type == "cpu" else None)
        return EngineInfo("llamacpp", fingerprint, longest, slots, resumable=True)

    def prepare(self, request: EngineRequest) -> Completion | Output:
        made = self._frontend.prepare(request, Completion)
        if isinstance(made, Completion) and made.scores_prompt:
            raise UnsupportedParameter("llama.cpp does not tell the logprobs of a prompt.", param="logprobs")
        if isinstance(made, Completion) and made.grammar is not None and made.params.min_tokens:
            raise UnsupportedParameter("llama.cpp has no least length beside a grammar.", param="min_tokens")
        return made

    async def stream(self, completion: Completion) -> AsyncIterator[Output]:
        with self._clock.works():
            lost = 0
            while completion.finish_reason is None:
                part = _Part(completion, lost)
                async with aclosing(self._outputs(part)) as outputs:
                    async for output in outputs:
                        yield output
                        if output.ends:
                            return
                lost = part.lost
            yield completion.output([], [])  # what another worker made of it was all

    async def _outputs(self, part: "_Part") -> AsyncGenerator[Output]:
        response = await self._sent("/completion", part.asked())
        try:
            async for data in events(response):
                self._clock.step()
                chunk = json.loads(data)
                if (failure := chunk.get("error")) is not None:
                    raise EngineFailed(f"llama-server failed: {failure.get('message')}")
                if (progress := chunk.get("prompt_progress")) is not None:
                    self._begin(part.completion, progress["cache"])
                elif (output := self._take(part, chunk)) is not None:
                    yield output
        except httpx2.HTTPError as error:
            raise _lost(error) from error
        finally:
            await response.aclose()  # so that it computes no more

    def _begin(self, completion: Completion, cached: int) -> None:
        if completion.cached is None:
            completion.cached = min(cached, completion.prompt_tokens)
            self._hits.add(completion.prompt_tokens, completion.cached)

    def _take(self, part: "_Part", chunk: Mapping[str, Any]) -> Output | None:
        completion, ids = part.completion, list(chunk.get("tokens") or [])
        untold = chunk["tokens_predicted"] - part.seen - len(ids)
        part.seen = chunk["tokens_predicted"]
        if chunk.get("stop"):
            part.end(untold, chunk.get("stop_type"))
        elif untold and ids:
            ids[:0] = self._bytes.ids_before(ids[0], chunk["content"].encode(), untold)
        told = len(ids)
        ids = part.without_known(ids)
        scores = chunk.get("completion_probabilities") or []
        taken: list[int] = []
        logprobs: list[TokenLogprob] = []
        for place, token_id in enumerate(ids, told - len(ids) - untold):
            if completion.finish_reason is not None:
                break
            taken.append(token_id)
            if completion.params.logprobs is not None:
                logprobs.append(self._scored(completion, token_id, scores[place] if place >= 0 else UNTOLD))
            try:
                completion.push(token_id)
            except InvalidRequest as error:  # the client's grammar is good, or it would have been refused before
                raise EngineFailed(f"llama-server does not keep to the grammar: {error.message}") from error
        if not taken and completion.finish_reason is None:
            return None
        return completion.output(taken, logprobs)

    def _scored(self, completion: Completion, token_id: int, score: Mapping[str, Any]) -> TokenLogprob:
        top = completion.params.logprobs or 0
        best = [(one["id"], max(LEAST, one["logprob"])) for one in score["top_logprobs"][:top]]
        is_end = completion.ends_with(token_id)
        return scored_token(token_id, max(LEAST, score["logprob"]), best, self._frontend.pieces, is_end)

    def cache(self) -> CacheFigures:
        return CacheFigures(None, self._hits.share())


class LlamaEncoder(Served):
    """Of a model that embeds, or ranks; its file says which."""

    def __init__(self, options: EngineOptions, head: Head) -> None:
        super().__init__(options)
        self._head = head

    def load(self) -> EngineInfo:
        asked, most = self._options.max_model_len, self._head.context_length
        if asked is not None and asked > most:
            raise StartupError(f"--max-model-len {asked} is more than the {most} tokens that the model can hold")
        self._slots, longest = self._options.slots or SLOTS, asked or most
        fingerprint = fingerprint_of_file(self._path)
        self._start_server(longest, self._slots, batch=longest, embedding=True)
        return EngineInfo("llamacpp", fingerprint, longest, self._slots, resumable=True)

    def prepare(self, request: EngineRequest) -> EngineRequest:
        kind = "rerank" if self._head.ranks else "embedding"
        if request.kind != kind:
            raise UnsupportedModel(f"This model does not support {request.kind} requests, but {kind}.")
        if request.payload.get("dimensions") is not None:
            raise UnsupportedParameter("llama.cpp does not cut embeddings.", param="dimensions")
        return request

    async def stream(self, request: EngineRequest) -> AsyncIterator[Output]:
        with self._clock.works():
            if self._head.ranks:
                yield ranked(request, await self._answer("/rerank", request.payload))
                return
            given, rows, tokens = request.payload["inputs"], [], 0
            for start in range(0, len(given), self._slots):  # so that it shows that it moves
                answer = await self._answer("/v1/embeddings", inputs(given[start : start + self._slots]))
                rows += [{**row, "index": start + row["index"]} for row in answer["data"]]
                tokens += answer["usage"]["prompt_tokens"]
            yield embedded(request, {"data": rows, "usage": {"prompt_tokens": tokens, "completion_tokens": 0}})

    async def _answer(self, path: str, body: Mapping[str, Any]) -> Any:
        response = await self._sent(path, body)
        try:
            return json.loads(await response.aread())
        except httpx2.HTTPError as error:
            raise _lost(error) from error
        finally:
            await response.aclose()
            self._clock.step()


class _Part:
    """As far as one request to llama-server goes: while an end is banned, and then on.

    llama-server tells of no token whose text ends within a character, but with the one that completes it. Those before
    the limit are never told of; they are as many as it counts, and no text comes of them. `lost`: so many were before
    this part.
    """

    def __init__(self, completion: Completion, lost: int) -> None:
        self.completion = completion
        self.seen = 0  # tokens that llama-server has counted
        self.lost = 0
        # llama-server begins a grammar with the reply. One that has begun is made again so far, by the same seed.
        begun = completion.ids[completion.prompt_tokens :] if completion.grammar is not None else []
        self._known = begun
        self._made = completion.completion_tokens - len(begun)
        self._more = lost + CHARACTER if lost else 0

    def asked(self) -> dict[str, Any]:
        completion, asked, made = self.completion, self.completion.params, self._made
        left = completion.tokens_left + len(self._known)
        self._is_last = made >= asked.min_tokens
        if not self._is_last:
            left = min(left, asked.min_tokens - made + self._more)  # what comes then may end
        bias = {**asked.logit_bias, **dict.fromkeys(completion.banned(made), False)}
        body: dict[str, Any] = {
            "prompt": completion.ids[: completion.prompt_tokens + made],
            "n_predict": left,
            "stream": True,
            "return_tokens": True,
            "return_progress": True,
            "cache_prompt": True,
            "samplers": SAMPLERS,
            "temperature": asked.temperature,
            "top_k": asked.top_k if asked.temperature else 1,  # or all the others would be drawn from, at no chance
            "top_p": asked.top_p,
            "min_p": asked.min_p,
            "repeat_penalty": asked.repetition_penalty,
            "presence_penalty": asked.presence_penalty,
            "frequency_penalty": asked.frequency_penalty,
            "repeat_last_n": completion.prompt_tokens + made + left,
            "ignore_eos": asked.ignore_eos and completion.matcher is None,
            "logit_bias": [[token_id, value] for token_id, value in bias.items()],
            "seed": seed_of(asked, completion.request.choice, made) % 2**32,
            "n_probs": 0 if asked.logprobs is None else max(1, asked.logprobs),
        }
        if completion.grammar is not None:
            body["grammar"] = "%llguidance {}\n" + as_lark(completion.grammar)
        return body

    def without_known(self, ids: list[int]) -> list[int]:
        """Of the tokens that came, those that are new."""
        while ids and self._known:
            if ids.pop(0) != self._known.pop(0):
                raise EngineUnable("This reply has a grammar, and llama.cpp did not come to where it had broken off.")
        return ids

    def end(self, untold: int, why: str | None) -> None:
        """llama-server makes no more, having told of all but so many."""
        completion = self.completion
        self.lost = untold
        if completion.finish_reason is not None:
            return
        if why == "eos":  # at a token that it alone takes for an end
            completion.stop()
        elif completion.tokens_left <= untold or (self._is_last and why == "limit"):
            completion.cut(untold)
        elif completion.completion_tokens == self._made and not untold:
            raise EngineFailed("llama-server made nothing of a request.")


def fingerprint_of_file(path: Path, *said: str | None) -> str:
    """Of the file's size, samples of all of it, and what is said beside it of how prompts and replies are read."""
    size = path.stat().st_size
    digest = hashlib.sha256(json.dumps([size, *said]).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _error_of(status: int, content: bytes) -> TokenbusError:
    try:
        told = json.loads(content)["error"]
        message, kind = str(told["message"]), told.get("type")
    except (ValueError, KeyError, TypeError):
        message, kind = f"status {status}", None
    if kind == "exceed_context_size_error" or "too large to process" in message:
        return ContextLengthExceeded(message)
    if "llguidance" in message and "not enabled" in message:
        return UnsupportedParameter("This llama-server was built without llguidance, and holds no grammars.")
    if kind == "not_supported_error":
        return UnsupportedModel(message)
    return InvalidRequest(message) if status < 500 else EngineFailed(f"llama-server failed: {message}")


def _lost(error: Exception) -> EngineFailed:
    return EngineFailed(f"llama-server was lost: {one_line(error)}")
