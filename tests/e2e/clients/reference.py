"""The chat model by transformers alone, for those who measure it through the gateway."""

from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.e2e.conftest import chat_weights
from worker.engines.gguf_file import parsed_once, restore_pre_tokenizer


class Reference:
    def __init__(self) -> None:
        file = Path(chat_weights())
        self._weights = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        with parsed_once():
            self.tokenizer = AutoTokenizer.from_pretrained(**self._weights)
        restore_pre_tokenizer(self.tokenizer.backend_tokenizer, file)

    @cached_property
    def _model(self) -> PreTrainedModel:
        with parsed_once():  # or it takes half a minute
            return AutoModelForCausalLM.from_pretrained(**self._weights, dtype=torch.float32).eval()

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Of the continuation, and whether it is the greedy one. Without a context it stands at the beginning."""
        before = self.tokenizer(context).input_ids if context else [self.tokenizer.bos_token_id]
        whole = self.tokenizer(context + continuation).input_ids
        ids = torch.tensor(whole if context else before + whole)
        with torch.no_grad():
            logprobs = self._model(ids[None]).logits[0].log_softmax(-1)[len(before) - 1 : -1]
        chosen = ids[len(before) :]
        return float(logprobs.gather(1, chosen[:, None]).sum()), bool((logprobs.argmax(-1) == chosen).all())
