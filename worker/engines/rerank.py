"""How well documents answer a query, by a cross-encoder: a classifier with one label that reads both together."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from shared.errors import EngineFailed, InvalidRequest, UnsupportedModel
from worker.engines.base import EngineRequest, Output
from worker.engines.encoder import Batch, EncoderStepper, Input


class RerankStepper(EncoderStepper):
    def _load(self, tokenizer: Any) -> None:
        self._classifier = self._checkpoint.cross_encoder()
        # A decoder finds each row's last token by it.
        if (padding := getattr(self._classifier.config, "pad_token_id", None)) is None:
            self._classifier.config.pad_token_id = self._pad_id
        else:
            self._pad_id = padding
        takes = inspect.signature(self._classifier.forward).parameters
        self._takes_types = "token_type_ids" in takes and "token_type_ids" in tokenizer.model_input_names

    @property
    def _model(self) -> Any:
        return self._classifier

    def _read(self, request: EngineRequest) -> Batch:
        if request.kind != "rerank":
            raise UnsupportedModel(f"This model ranks documents; it does not support {request.kind} requests.")
        query, documents = query_and_documents(request.payload)
        return Batch(request, [self._reader.whole(query, document, "documents") for document in documents])

    def _compute(self, inputs: Sequence[Input]) -> Tensor:
        arguments = {
            "input_ids": self._padded([one.ids for one in inputs], self._pad_id),
            "attention_mask": self._padded([[1] * len(one.ids) for one in inputs], 0),
        }
        if self._takes_types:
            arguments["token_type_ids"] = self._padded([one.types or [0] * len(one.ids) for one in inputs], 0)
        logits: Tensor = self._classifier(**arguments).logits
        return logits[:, 0].float().sigmoid()

    def _answer(self, batch: Batch) -> Output:
        return ranked(batch, batch.done)


def query_and_documents(payload: Mapping[str, Any]) -> tuple[str, list[str]]:
    query, documents = payload.get("query"), payload.get("documents")
    if not isinstance(query, str) or not query:
        raise InvalidRequest("'query' must be a string that is not empty.", param="query")
    if not isinstance(documents, list) or not documents or not all(isinstance(text, str) for text in documents):
        raise InvalidRequest("'documents' must be a list of strings that is not empty.", param="documents")
    return query, documents


def ranked(batch: Batch, scores: Sequence[Tensor] | Tensor) -> Output:
    """The scores of a request's documents, in their order."""
    values = [float(score) for score in scores]
    if any(value != value for value in values):
        return Output(id=batch.id, error=EngineFailed("The model computed something that is not a number."))
    return Output(id=batch.id, result={"scores": values}, finish_reason="stop", usage=batch.usage)
