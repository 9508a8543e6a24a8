"""Models that compute each input once: the inputs of several requests together, sorted by length."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from shared.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, StartupError
from shared.logging import get_logger
from shared.messages import Usage
from worker.engines.base import EngineInfo, EngineRequest, Output
from worker.engines.checkpoint import Checkpoint
from worker.engines.figures import CacheFigures
from worker.engines.options import SLOTS, EngineOptions
from worker.engines.tokens import Tokens, encodable

log = get_logger(__name__)

STEP_TOKENS = 2048  # computed in one step
DROPPED = 16  # a normalizer may drop most of a text (spaces), and a long word may become one token
BATCH_TOKENS = 512  # of them in one forward pass, padding included; one longer input has a pass of its own


@dataclass(frozen=True, slots=True)
class Input:
    """A text as token ids, or two; then `types` says which of them each token is of (0 or 1)."""

    ids: list[int]
    types: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """One request's inputs, and the rows computed of them so far (on the CPU, in float32)."""

    request: EngineRequest
    inputs: list[Input]
    done: list[Tensor] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=sum(len(one.ids) for one in self.inputs), completion_tokens=0)


class InputReader:
    """Texts as the inputs of one encoder. Raises InvalidRequest that names the parameter they came in."""

    def __init__(self, tokenizer: Any, checkpoint: Checkpoint) -> None:
        self._encoder = tokenizer.backend_tokenizer
        self._vocabulary: int = checkpoint.config.get_text_config().vocab_size
        self.max_tokens = checkpoint.max_input_tokens(tokenizer)
        # In bytes; what is longer need not be tokenized to be refused.
        self._largest = DROPPED * self.max_tokens * max(len(token.encode()) for token in self._encoder.get_vocab())

    def text(self, text: str, param: str) -> Input:
        if not text:
            raise InvalidRequest(f"'{param}' must not contain an empty string.", param=param)
        return self.whole(text, None, param)

    def whole(self, text: str, second: str | None, param: str) -> Input:
        """One text, or two as a pair."""
        size = len(encodable(text)) + len(encodable(second or ""))
        if size > self._largest:
            self._refuse(f"{size} bytes", param)
        encoding = self._encoder.encode(text, second)
        return self._checked(Input(list(encoding.ids), list(encoding.type_ids)), param)

    def tokens(self, ids: Any, param: str) -> Input:
        if not isinstance(ids, list) or not all(isinstance(id, int) and 0 <= id < self._vocabulary for id in ids):
            raise InvalidRequest(f"'{param}' must be strings or lists of token ids of this model.", param=param)
        return self._checked(Input(ids), param)

    def _checked(self, made: Input, param: str) -> Input:
        if not made.ids:
            raise InvalidRequest(f"'{param}' must not be empty.", param=param)
        if len(made.ids) > self.max_tokens:
            self._refuse(f"{len(made.ids)} tokens", param)
        return made

    def _refuse(self, amount: str, param: str) -> NoReturn:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {self.max_tokens} tokens. However, your {param} resulted in "
            f"{amount}. Please reduce its length.",
            param=param,
        )


class EncoderStepper(ABC):
    """`waiting` is first come, first served. What a request is answered is made of the rows of its inputs."""

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        self._checkpoint = checkpoint
        self._slots = options.slots or SLOTS
        self.waiting: deque[Batch] = deque()

    def load(self) -> EngineInfo:
        tokenizer = self._checkpoint.tokenizer()
        self._reader = InputReader(tokenizer, self._checkpoint)
        self._tokens = Tokens(tokenizer.backend_tokenizer, self._reader.max_tokens)
        self._pad_id: int = tokenizer.pad_token_id or 0
        self._load(tokenizer)
        self._check()
        return EngineInfo(
            name="transformers",
            fingerprint=self._checkpoint.fingerprint(self._model, tokenizer),
            max_model_len=self._reader.max_tokens,
            slots=self._slots,
            resumable=True,
        )

    @torch.inference_mode()
    def _check(self) -> None:
        """Raises StartupError for an encoder that cannot be run this way."""
        try:
            self._compute([Input([1]), Input([1, 1])])
        except Exception as problem:  # foreign code, run in a way that it may not know
            name, line = type(self._model).__name__, str(problem).strip().partition("\n")[0]
            raise StartupError(f"the transformers engine does not support {name}: {line}") from problem

    @property
    @abstractmethod
    def _model(self) -> Any: ...

    @abstractmethod
    def _load(self, tokenizer: Any) -> None: ...

    def prepare(self, request: EngineRequest) -> Batch | Output:
        answer = self._tokens.answer(request)
        return self._read(request) if answer is None else answer

    @abstractmethod
    def _read(self, request: EngineRequest) -> Batch:
        """Raises TokenbusError for what the client got wrong."""

    @abstractmethod
    def _compute(self, inputs: Sequence[Input]) -> Tensor:
        """A row for each input."""

    @abstractmethod
    def _answer(self, batch: Batch) -> Output:
        """To a request whose rows are all there."""

    def add(self, prepared: Batch) -> None:
        self.waiting.append(prepared)

    def abort(self, request_id: str) -> None:
        self.waiting = deque(batch for batch in self.waiting if batch.id != request_id)

    def abort_all(self) -> list[str]:
        ids = [batch.id for batch in self.waiting]
        self.waiting.clear()
        return ids

    def has_work(self) -> bool:
        return bool(self.waiting)

    def schedule(self) -> list[tuple[Batch, Input]]:
        """The next inputs, first come, first served, of as many requests as fit the step."""
        chosen: list[tuple[Batch, Input]] = []
        budget = STEP_TOKENS
        for batch in self.waiting:
            for one in batch.inputs[len(batch.done) :]:
                budget -= len(one.ids)
                if chosen and budget < 0:
                    return chosen
                chosen.append((batch, one))
        return chosen

    def cache(self) -> CacheFigures:
        return CacheFigures()

    @torch.inference_mode()
    def step(self) -> list[Output]:
        chosen = self.schedule()
        rows: dict[int, Tensor] = {}
        for places in batches_of_similar_length([len(one.ids) for _, one in chosen], BATCH_TOKENS):
            made = self._compute([chosen[place][1] for place in places]).float().cpu()
            rows.update(zip(places, made, strict=True))
        for place, (batch, _) in enumerate(chosen):
            batch.done.append(rows[place])
        outputs = []
        while self.waiting and len(self.waiting[0].done) == len(self.waiting[0].inputs):
            outputs.append(self._answer_or_fail(self.waiting.popleft()))
        return outputs

    def _answer_or_fail(self, batch: Batch) -> Output:
        """What goes wrong with one of them must not lose the answers of others."""
        try:
            return self._answer(batch)
        except Exception as error:
            log.exception("request %s failed", batch.id)
            return Output(id=batch.id, error=EngineFailed(f"The engine failed: {error}"))

    def _padded(self, rows: Sequence[list[int]], padding: int) -> Tensor:
        """[rows, longest], on the model's device."""
        padded = torch.full((len(rows), max(map(len, rows))), padding, dtype=torch.int64)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = torch.tensor(row)
        return padded.to(self._checkpoint.device)


def batches_of_similar_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Places of inputs that are computed together: little padding, and at most `tokens` with it."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batches and lengths[place] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
