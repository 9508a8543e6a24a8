"""The echo engine: no model, every rule of a real one. Token i is word i of the last user message, cycling, with the
name of an adapter behind the last one; words are tokens, but a prompt of more than 128 characters a token of the
context is too long, however few they are."""

import hashlib
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import ContextLengthExceeded, InvalidRequest, StartupError, UnsupportedModel, UnsupportedParameter
from shared.messages import GENERATION_KINDS, FinishReason, Logprob, Resume, TokenLogprob, Usage
from worker.engines.base import EngineInfo, EngineRequest, Output, SteppedEngine
from worker.engines.figures import CacheFigures
from worker.engines.options import SLOTS, EngineOptions
from worker.engines.text import StopMatcher

MAX_MODEL_LEN = 8192
CHARS_PER_TOKEN = 128


def create(options: EngineOptions) -> SteppedEngine:
    return SteppedEngine(EchoStepper(options))


@dataclass(slots=True)
class Sequence:
    """`made` completion tokens so far; ids are word indexes, so that any worker can go on from them."""

    id: str
    words: list[str]
    prompt_tokens: int
    limit: int
    stops: StopMatcher
    logprobs: int | None = None
    prompt: str | None = None  # to be given out first
    made: int = 0
    skip: int = 0  # characters that the gateway already has
    unsent: str = ""  # made before, and not among them
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def resume(self, resume: Resume | None) -> None:
        replayed = resume.token_ids if resume is not None else []
        self.skip = resume.chars_sent if resume is not None else 0
        if self.prompt is not None:
            self.unsent = self._unsent(self.prompt)
            if self.logprobs is not None and not replayed:
                words = [(" " if place else "") + word for place, word in enumerate(self.prompt.split())]
                self.prompt_logprobs = [self._certain(word) for word in words]
                self.prompt_logprobs[:1] = [TokenLogprob(word, None) for word in words[:1]]
        for _ in replayed:
            self.unsent += self.next_token()[1]

    def next_token(self) -> tuple[int, str, list[TokenLogprob]]:
        index = self.made % len(self.words)
        text = ("" if self.made == 0 else " ") + self.words[index]
        self.made += 1
        logprobs = [] if self.logprobs is None else [self._certain(text)]
        return index, self._unsent(self.stops.push(text)), logprobs

    def _certain(self, token: str) -> TokenLogprob:
        return TokenLogprob(token, 0.0, top=[Logprob(token, 0.0)] if self.logprobs else [])

    def finish_reason(self) -> FinishReason | None:
        if self.stops.matched is not None or not self.words:
            return "stop"
        return "length" if self.made >= self.limit else None

    def end(self) -> str:
        return self._unsent(self.stops.flush())

    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.made)

    def _unsent(self, text: str) -> str:
        unsent = text[self.skip :]
        self.skip = max(0, self.skip - len(text))
        return unsent


class EchoStepper:
    """One token for every running sequence a step, `echo_interval_ms` apart."""

    def __init__(self, options: EngineOptions) -> None:
        self._slots = options.slots or SLOTS
        self._max_model_len = options.max_model_len or MAX_MODEL_LEN
        self._interval = options.echo_interval_ms / 1000
        self._adapters = [name for name, _ in options.lora_modules]
        self._crash_word = options.echo_crash_word
        self._next_step = 0.0
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def load(self) -> EngineInfo:
        if self._max_model_len < 2:
            raise StartupError("--max-model-len must be at least 2")
        fingerprint = hashlib.sha256(f"echo:{self._max_model_len}".encode()).hexdigest()[:16]
        adapters = {name: f"{fingerprint}-{name}" for name in self._adapters}
        return EngineInfo("echo", fingerprint, self._max_model_len, self._slots, resumable=True, adapters=adapters)

    def prepare(self, request: EngineRequest) -> Sequence:
        if request.kind not in GENERATION_KINDS:
            raise UnsupportedModel(f"The echo engine does not support {request.kind} requests.")
        _refuse_what_it_cannot(request)
        last, everything = _texts(request.payload)
        if self._crash_word and any(self._crash_word in text for text in everything):
            os._exit(134)  # as hard as a native library that aborts
        prompt_tokens = _tokens(everything, self._max_model_len)
        room = self._max_model_len - prompt_tokens
        if room < 0 or (room == 0 and request.sampling.max_tokens != 0):
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._max_model_len} tokens. "
                f"However, your messages resulted in {prompt_tokens} tokens. Please reduce their length."
            )
        sampling = request.sampling
        limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        words = last.split() + self._adapters[request.adapter - 1 :][: bool(request.adapter)]
        sequence = Sequence(request.id, words, prompt_tokens, limit, StopMatcher(sampling.stop), sampling.logprobs)
        sequence.prompt = last if sampling.echo else None
        sequence.resume(request.resume)
        return sequence

    def add(self, prepared: Sequence) -> None:
        self._waiting.append(prepared)

    def abort(self, request_id: str) -> None:
        self._waiting = deque(sequence for sequence in self._waiting if sequence.id != request_id)
        self._running = [sequence for sequence in self._running if sequence.id != request_id]

    def abort_all(self) -> list[str]:
        ids = [sequence.id for sequence in (*self._running, *self._waiting)]
        self._running, self._waiting = [], deque()
        return ids

    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def step(self) -> list[Output]:
        self._pace()
        while self._waiting and len(self._running) < self._slots:
            self._running.append(self._waiting.popleft())
        outputs = [self._advance(sequence) for sequence in self._running]
        ended = {output.id for output in outputs if output.ends}
        if ended:
            self._running = [sequence for sequence in self._running if sequence.id not in ended]
        return outputs

    def cache(self) -> CacheFigures:
        return CacheFigures()

    def _pace(self) -> None:
        now = time.monotonic()
        if self._interval:
            if self._next_step > now:
                time.sleep(self._next_step - now)
            self._next_step = max(self._next_step, now - self._interval) + self._interval

    def _advance(self, sequence: Sequence) -> Output:
        output = Output(id=sequence.id, text=sequence.unsent, prompt_logprobs=sequence.prompt_logprobs)
        sequence.unsent, sequence.prompt_logprobs = "", []
        if sequence.finish_reason() is None:  # a resumed one may have nothing left to do
            token, text, output.logprobs = sequence.next_token()
            output.text += text
            output.token_ids = [token]
        if reason := sequence.finish_reason():
            output.text += sequence.end()
            output.finish_reason, output.stop = reason, sequence.stops.matched
            output.usage = sequence.usage()
        return output


def _refuse_what_it_cannot(request: EngineRequest) -> None:
    sampling, payload = request.sampling, request.payload
    asked = {
        "logit_bias": sampling.logit_bias,
        sampling.structured.param if sampling.structured else "": sampling.structured,
        "stop_token_ids": sampling.stop_token_ids,
        "tools": payload.get("tools"),
        "tool_choice": payload.get("tool_choice", {}).get("mode") == "required",
        "reasoning_effort": payload.get("reasoning_effort", "none") != "none",
    }
    for param, value in asked.items():
        if value:
            raise UnsupportedParameter(f"The echo engine does not support {param!r}.", param=param)


def _tokens(texts: list[str], most: int) -> int:
    """Words; or more than there may be, for what no model could hold."""
    chars = sum(map(len, texts))
    return chars if chars > CHARS_PER_TOKEN * most else sum(len(text.split()) for text in texts)


def _texts(payload: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What is echoed, and all that counts as prompt."""
    if "messages" in payload:
        messages = payload["messages"]
        said = [message.get("content") or "" for message in messages if message["role"] == "user"]
        if not said:
            raise InvalidRequest("The echo engine needs a user message.", param="messages")
        return said[-1], [message.get("content") or "" for message in messages]
    prompt = payload["prompt"]
    text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
    return text, [text]
