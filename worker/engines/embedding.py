"""Embeddings from a text encoder: the inputs of several requests are computed together, sorted by length."""

import base64
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from shared.errors import ContextLengthExceeded, InvalidRequest, UnsupportedModel
from shared.messages import Usage
from worker.engines.base import EngineInfo, EngineRequest, Output
from worker.engines.checkpoint import Checkpoint
from worker.engines.options import EngineOptions
from worker.engines.pooling import Pooling
from worker.engines.prompts import encodable

STEP_TOKENS = 2048  # computed in one step
DROPPED = 16  # a normalizer may drop most of a text (spaces), and a long word may become one token
BATCH_TOKENS = 512  # of them in one forward pass, padding included; one longer input has a pass of its own


@dataclass(slots=True)
class Batch:
    """One request's inputs, and the embeddings made of them so far."""

    id: str
    inputs: list[list[int]]
    done: list[str]

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=sum(len(ids) for ids in self.inputs), completion_tokens=0)


class EmbeddingStepper:
    def __init__(self, checkpoint: Checkpoint, options: EngineOptions) -> None:
        self._checkpoint = checkpoint
        self._slots = options.slots
        self.waiting: deque[Batch] = deque()

    def load(self) -> EngineInfo:
        tokenizer = self._checkpoint.tokenizer()
        self._pooling = Pooling.of(self._checkpoint)
        self._model = self._checkpoint.encoder()
        self._encoder = tokenizer.backend_tokenizer
        self._pad_id: int = tokenizer.pad_token_id or 0
        self._vocabulary: int = self._checkpoint.config.get_text_config().vocab_size
        self._max_tokens = self._checkpoint.max_input_tokens(tokenizer)
        # In bytes; what is longer need not be tokenized to be refused.
        self._largest = DROPPED * self._max_tokens * max(len(token.encode()) for token in self._encoder.get_vocab())
        self._embed([[1], [1, 1]])  # an encoder that cannot be run this way is found out now
        return EngineInfo(
            name="transformers",
            fingerprint=self._checkpoint.fingerprint(self._model, tokenizer),
            max_model_len=self._max_tokens,
            slots=self._slots,
            resumable=True,
        )

    def prepare(self, request: EngineRequest) -> Batch:
        if request.kind != "embedding":
            raise UnsupportedModel(f"This model makes embeddings; it does not support {request.kind} requests.")
        inputs = request.payload.get("inputs")
        if not isinstance(inputs, list) or not inputs:
            raise InvalidRequest("'input' must not be empty.", param="input")
        return Batch(request.id, [self._read(text) for text in inputs], [])

    def _read(self, text: Any) -> list[int]:
        if isinstance(text, str):
            if not text:
                raise InvalidRequest("'input' must not contain an empty string.", param="input")
            if (size := len(encodable(text))) > self._largest:
                self._refuse(f"{size} bytes")
            ids = list(self._encoder.encode(self._pooling.text(text)).ids)
        elif isinstance(text, list) and all(isinstance(token, int) and 0 <= token < self._vocabulary for token in text):
            ids = text
        else:
            raise InvalidRequest("'input' must be strings or lists of token ids of this model.", param="input")
        if not ids:
            raise InvalidRequest("'input' must not be empty.", param="input")
        if len(ids) > self._max_tokens:
            self._refuse(f"{len(ids)} tokens")
        return ids

    def _refuse(self, amount: str) -> NoReturn:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {self._max_tokens} tokens. However, your input resulted in "
            f"{amount}. Please reduce its length.",
            param="input",
        )

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

    def schedule(self) -> list[tuple[Batch, list[int]]]:
        """The next inputs, first come, first served, of as many requests as fit the step."""
        chosen: list[tuple[Batch, list[int]]] = []
        budget = STEP_TOKENS
        for batch in self.waiting:
            for ids in batch.inputs[len(batch.done) :]:
                budget -= len(ids)
                if chosen and budget < 0:
                    return chosen
                chosen.append((batch, ids))
        return chosen

    def step(self) -> list[Output]:
        chosen = self.schedule()
        vectors: dict[int, str] = {}
        for places in batches_of_similar_length([len(ids) for _, ids in chosen], BATCH_TOKENS):
            vectors.update(zip(places, self._embed([chosen[place][1] for place in places]), strict=True))
        for place, (batch, _) in enumerate(chosen):
            batch.done.append(vectors[place])
        outputs = []
        while self.waiting and len(self.waiting[0].done) == len(self.waiting[0].inputs):
            outputs.append(self.finish(self.waiting.popleft()))
        return outputs

    def finish(self, batch: Batch) -> Output:
        return Output(id=batch.id, embeddings=batch.done, finish_reason="stop", usage=batch.usage)

    @torch.inference_mode()
    def _embed(self, inputs: Sequence[list[int]]) -> list[str]:
        """Base64 of little-endian float32, for each input in order."""
        longest = max(len(ids) for ids in inputs)
        ids = torch.full((len(inputs), longest), self._pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(inputs):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        ids, mask = ids.to(self._checkpoint.device), mask.to(self._checkpoint.device)
        hidden: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = self._pooling.pool(hidden.float(), mask).cpu().numpy().astype("<f4")
        return [base64.b64encode(vector.tobytes()).decode() for vector in vectors]


def batches_of_similar_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Places of inputs that are computed together: little padding, and at most `tokens` with it."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batches and lengths[place] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
