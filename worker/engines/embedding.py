"""Embeddings from a text encoder, and documents ranked by them."""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from shared.errors import InvalidRequest, UnsupportedModel
from worker.engines.base import EngineRequest, Output
from worker.engines.encoder import Batch, EncoderStepper, Input
from worker.engines.pooling import Pooling
from worker.engines.rerank import query_and_documents, ranked


class EmbeddingStepper(EncoderStepper):
    def _load(self, tokenizer: Any) -> None:
        self._pooling = Pooling.of(self._checkpoint)
        self._encoder = self._checkpoint.encoder()
        self._size: int = self._checkpoint.config.get_text_config().hidden_size
        # Some models were trained to be cut at these sizes alone.
        self._sizes: list[int] | None = getattr(self._checkpoint.config, "matryoshka_dimensions", None)

    @property
    def _model(self) -> Any:
        return self._encoder

    def _read(self, request: EngineRequest) -> Batch:
        if request.kind == "embedding":
            self._check_dimensions(request.payload.get("dimensions"))
            inputs = request.payload.get("inputs")
            if not isinstance(inputs, list) or not inputs:
                raise InvalidRequest("'input' must not be empty.", param="input")
            return Batch(request, [self._input(one, "input") for one in inputs])
        if request.kind == "rerank":
            query, documents = query_and_documents(request.payload)
            read = [self._input(query, "query"), *(self._input(document, "documents") for document in documents)]
            return Batch(request, read)
        raise UnsupportedModel(f"This model makes embeddings; it does not support {request.kind} requests.")

    def _input(self, given: Any, param: str) -> Input:
        if isinstance(given, str):
            return self._reader.text(self._pooling.text(given), param)
        return self._reader.tokens(given, param)

    def _check_dimensions(self, dimensions: int | None) -> None:
        if dimensions is None or dimensions == self._size:
            return
        if dimensions > self._size:
            raise InvalidRequest(f"This model's embeddings have {self._size} dimensions.", param="dimensions")
        if self._sizes is not None and dimensions not in self._sizes:
            sizes = ", ".join(map(str, self._sizes))
            raise InvalidRequest(f"This model's embeddings can be cut to {sizes} dimensions.", param="dimensions")

    def _compute(self, inputs: Sequence[Input]) -> Tensor:
        ids = self._padded([one.ids for one in inputs], self._pad_id)
        mask = self._padded([[1] * len(one.ids) for one in inputs], 0)
        hidden: Tensor = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self._pooling.pool(hidden.float(), mask)

    def _answer(self, batch: Batch) -> Output:
        vectors = torch.stack(batch.done)
        if batch.request.kind == "rerank":
            return ranked(batch, cosine_similarity(vectors[:1], vectors[1:]))
        if (dimensions := batch.request.payload.get("dimensions")) is not None:
            vectors = self._pooling.cut(vectors, dimensions)
        rows = vectors.numpy().astype("<f4")
        embeddings = [base64.b64encode(row.tobytes()).decode() for row in rows]
        return Output(id=batch.id, embeddings=embeddings, finish_reason="stop", usage=batch.usage)
