"""The openai engine: passes requests on to a server that speaks the OpenAI API (vLLM, SGLang, llama-server, Ollama, a
cloud).

Text comes back, not tokens, so that no other worker can go on with a reply that has begun. What the upstream does not
say is not made up, but for the count of a reply's tokens, which is then that of its pieces.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

import httpx2
import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from shared.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    StartupError,
    TokenbusError,
    UnsupportedModel,
    UnsupportedParameter,
    UpstreamBusy,
    UpstreamDown,
    UpstreamFailed,
    one_line,
)
from shared.logging import get_logger
from worker.engines.base import Engine, EngineInfo, EngineRequest, Output
from worker.engines.figures import CacheFigures
from worker.engines.openai_answers import Reply, embedded, ranked, refused
from worker.engines.openai_words import chat, completion, inputs, sampling
from worker.engines.options import EngineOptions
from worker.engines.sse import LineTooLongError, events
from worker.engines.streamed import StreamedEngine

log = get_logger(__name__)

SLOTS = 64
MAX_MODEL_LEN = 131_072  # where neither the upstream says it nor a flag
CONNECT_S, SILENT_S = 5.0, 300.0
TRIES = 3
BACKOFF, LONGEST_PAUSE_S = wait_random_exponential(multiplier=0.4, max=3.0), 10.0
FAILURES = 5  # one after the other, after which nothing more is sent until the upstream answers again
PROBE_S = 2.0
LARGEST_ANSWER, LARGEST_ERROR = 256 * 2**20, 2**20  # bytes
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def create(options: EngineOptions) -> Engine:
    return StreamedEngine(OpenAIStreamer(options), options.hang_timeout)


class _AgainError(Exception):
    """Nothing has come of a request, which may be sent again; with what to say if it is not."""

    def __init__(self, error: TokenbusError) -> None:
        super().__init__(error.message)
        self.error = error


class OpenAIStreamer:
    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._url = (options.upstream_url or "").rstrip("/") + "/"
        self._model = options.upstream_model or ""
        self._failures = 0
        self._http: httpx2.AsyncClient | None = None
        self._prober: asyncio.Task[None] | None = None
        self._tokens_field = "max_tokens"

    def load(self) -> EngineInfo:
        """Waits for the upstream, which may still load its model."""
        with httpx2.Client(**self._arguments()) as http:
            while True:
                try:
                    models = self._models(http.get("models"))
                    break
                except (httpx2.HTTPError, UpstreamDown) as error:
                    log.warning("waiting for %s: %s", self._url, one_line(error))
                    time.sleep(PROBE_S)
        listed = {str(model.get("id")): model for model in models}
        if not self._model and len(listed) != 1:
            raise StartupError(f"--upstream-model is needed: {self._url} has {', '.join(sorted(listed)) or 'none'}")
        self._model = self._model or next(iter(listed))
        if listed and self._model not in listed:
            log.warning("%s does not list %s, but %s", self._url, self._model, ", ".join(sorted(listed)))
        told = listed.get(self._model, {})
        meta = told.get("meta")
        lengths = (
            *(told.get("max_model_len"), told.get("context_length")),
            *((meta.get("n_ctx"),) if isinstance(meta, dict) else ()),
        )
        longest = next((length for length in lengths if isinstance(length, int) and length > 0), None)
        return EngineInfo(
            name="openai",
            fingerprint=hashlib.sha256(f"openai:{self._url}:{self._model}".encode()).hexdigest()[:16],
            max_model_len=self._options.max_model_len or longest or MAX_MODEL_LEN,
            slots=self._options.slots or SLOTS,
            resumable=False,
        )

    def _arguments(self) -> dict[str, Any]:
        key = self._options.upstream_api_key
        return {
            "base_url": self._url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx2.Timeout(SILENT_S, connect=CONNECT_S),
            "trust_env": httpx2.URL(self._url).host not in LOOPBACK,  # a proxy does not know our localhost
        }

    def _models(self, response: httpx2.Response) -> list[dict[str, Any]]:
        """Raises UpstreamDown for what may pass, StartupError for what will not."""
        if response.status_code >= 500 or response.status_code == 429:
            raise UpstreamDown(f"it answered {response.status_code}")
        if response.status_code in (401, 403):
            raise StartupError(f"{self._url} refuses the key: TOKENBUS_UPSTREAM_API_KEY")
        try:
            listed = list(response.raise_for_status().json().get("data") or [])
            if all(isinstance(model, dict) for model in listed):
                return listed
            raise TypeError
        except (httpx2.HTTPStatusError, ValueError, AttributeError, TypeError):
            raise StartupError(f"{self._url} does not speak the OpenAI API (its address ends with /v1)") from None

    async def start(self) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=self._options.slots or SLOTS)
        self._http = httpx2.AsyncClient(limits=limits, **self._arguments())
        self._prober = asyncio.create_task(self._probe(self._http))

    def accepts(self) -> bool:
        """False: the upstream has failed again and again, whoever asked."""
        return self._failures < FAILURES

    async def _probe(self, http: httpx2.AsyncClient) -> None:
        """Whether it is back."""
        while True:
            await asyncio.sleep(PROBE_S)
            if not self.accepts():
                with suppress(httpx2.HTTPError):
                    if (await http.get("models", timeout=CONNECT_S)).is_success:
                        log.info("%s is back", self._url)
                        self._failures = 0

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures == FAILURES:
            log.warning("%s: nothing more is sent to %s until it answers", why, self._url)

    def prepare(self, request: EngineRequest) -> EngineRequest:
        return request

    async def stream(self, request: EngineRequest) -> AsyncIterator[Output]:
        if request.kind in ("chat", "completion"):
            path, body = ("chat/completions", chat) if request.kind == "chat" else ("completions", completion)
            asked = {"model": self._model, **body(request), **sampling(request)}
            async with aclosing(self._streamed(request, path, asked)) as outputs:
                async for output in outputs:
                    yield output
        elif request.kind == "embedding":
            asked = inputs(request.payload["inputs"], request.payload.get("dimensions"))
            yield embedded(request, await self._whole("embeddings", {"model": self._model, **asked}))
        elif request.kind == "rerank":
            yield ranked(request, await self._whole("rerank", {"model": self._model, **request.payload}))
        else:
            raise UnsupportedModel(f"This model is served by another server, which does not {request.kind}.")

    async def _whole(self, path: str, body: Mapping[str, Any]) -> Any:
        response = await self._sent(path, body)
        try:
            answer = await _read(response, LARGEST_ANSWER)
            self._failures = 0
            return msgspec.json.decode(answer)
        except httpx2.HTTPError as error:
            raise self._broken_off(error) from error
        except msgspec.DecodeError as error:
            raise UpstreamFailed("The upstream answered something that is not JSON.") from error
        finally:
            await response.aclose()

    async def _streamed(self, request: EngineRequest, path: str, body: dict[str, Any]) -> AsyncGenerator[Output]:
        if request.sampling.max_tokens is not None:
            body[self._tokens_field] = request.sampling.max_tokens
        try:
            response = await self._sent(path, body)
        except InvalidRequest as error:
            if "max_completion_tokens" not in error.message or "max_tokens" not in body:
                raise
            self._tokens_field = "max_completion_tokens"  # of OpenAI's own newer models
            body[self._tokens_field] = body.pop("max_tokens")
            response = await self._sent(path, body)
        reply = Reply(request)
        try:
            if response.headers.get("content-type", "").startswith("application/json"):  # an error, with status 200
                reply.take(await _read(response, LARGEST_ERROR))
                raise UpstreamFailed("The upstream does not stream.")
            async for data in events(response):
                if data == b"[DONE]":
                    break
                if (output := reply.take(data)) is not None:
                    self._failures = 0
                    yield output
            yield reply.end()
            self._failures = 0
        except httpx2.HTTPError as error:
            raise self._broken_off(error) from error
        except LineTooLongError as error:
            raise UpstreamFailed(f"The upstream's stream cannot be read: {error}") from error
        finally:
            await response.aclose()  # so that it computes no more

    def _broken_off(self, error: httpx2.HTTPError) -> EngineFailed:
        self._failed(one_line(error))
        return EngineFailed(f"The upstream broke off: {one_line(error)}")

    async def _sent(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        """A response that is good, and not read yet. What fails before that is sent again."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_AgainError), stop=stop_after_attempt(TRIES), wait=_pause, reraise=True
        )
        try:
            response: httpx2.Response = await retrying(self._once, path, body)
        except _AgainError as again:
            raise again.error from again
        return response

    async def _once(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        assert self._http is not None
        try:
            response = await self._http.send(self._http.build_request("POST", path, json=body), stream=True)
        except httpx2.ReadTimeout as error:  # it may compute it still: sent again, it would do it twice
            self._failed("it is silent")
            raise UpstreamFailed(f"The upstream has not answered within {SILENT_S:g} s.") from error
        except httpx2.HTTPError as error:
            self._failed(one_line(error))
            raise _AgainError(UpstreamDown(f"The upstream cannot be reached: {one_line(error)}")) from error
        if response.is_success:
            return response
        content = b""
        try:
            content = await _read(response, LARGEST_ERROR)
        except (httpx2.HTTPError, UpstreamFailed):
            pass
        finally:
            await response.aclose()
        if response.status_code in (502, 503, 504):
            self._failed(f"status {response.status_code}")
        else:
            self._failures = 0  # it is there: what is wrong may be the request, or there are too many
        problem = _error_of(response, content)
        raise _AgainError(problem) if isinstance(problem, EngineFailed | UpstreamBusy) else problem

    def stalled_for(self) -> float:
        return 0.0  # what another machine does says nothing of this process

    def step_ms(self) -> float:
        return 0.0

    def cache(self) -> CacheFigures:
        return CacheFigures()

    async def stop(self) -> None:
        if self._prober is not None:
            self._prober.cancel()
        if self._http is not None:
            await self._http.aclose()


def _pause(state: RetryCallState) -> float:
    """As the upstream says, or longer from time to time."""
    error = state.outcome.exception() if state.outcome is not None else None
    told = error.error.retry_after if isinstance(error, _AgainError) else None
    return min(told, LONGEST_PAUSE_S) if told is not None else BACKOFF(state)


async def _read(response: httpx2.Response, most: int) -> bytes:
    """Raises UpstreamFailed for more bytes than that."""
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > most:
            raise UpstreamFailed(f"The upstream's answer has more than {most} bytes.")
    return bytes(content)


def _error_of(response: httpx2.Response, content: bytes) -> TokenbusError:
    """What a client is told of what the upstream said. Its own keys, limits and bills are none of a client's
    business."""
    status = response.status_code
    message, param, code = refused(content)
    message = message or f"status {status}"
    if status in (501, 505):
        return UpstreamFailed(f"The upstream does not do this: {message}")
    if status >= 500 or status in (408, 425):
        return EngineFailed(f"The upstream failed: {message}")  # which the request may be to blame for
    if status == 429:
        return UpstreamBusy("The upstream has too many requests; try again later.", retry_after=_seconds(response))
    if status < 400 or status in (401, 402, 403, 404, 407):
        log.error("the upstream refuses this worker: %s", message)
        return UpstreamFailed("The upstream refuses this worker's requests.")
    if status == 413:
        return BodyTooLarge(message)
    for kind in (ContextLengthExceeded, UnsupportedModel, UnsupportedParameter):
        if code == kind.code:
            return kind(message, param=param)
    return InvalidRequest(message, param=param)


def _seconds(response: httpx2.Response) -> float | None:
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:  # a date, or nothing
        return None
    return seconds if 0 <= seconds < math.inf else None
