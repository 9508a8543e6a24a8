"""A request's payload as token ids. What is wrong with it is said as InvalidRequest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerFast

from shared.errors import ContextLengthExceeded, InvalidRequest, UnsupportedModel
from shared.grammar import constraint
from shared.messages import Progress
from worker.engines.base import EngineRequest


class OutputParser(Protocol):
    """Finds thoughts and tool calls in a reply's text. What it gives may lag behind, never run ahead."""

    @property
    def keep(self) -> frozenset[int]:
        """Special tokens whose text it must see; that of all others is no part of the reply."""

    @property
    def is_reasoning(self) -> bool:
        """The text pushed last was a thought."""

    def push(self, text: str) -> Progress: ...

    def finish(self) -> Progress:
        """What was held back, when nothing more comes."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a sequence begins with, what reads its text (None: it is text alone), and the llguidance grammar that its
    tokens must obey."""

    ids: list[int]
    parser: OutputParser | None = None
    grammar: str | None = None


class PromptReader:
    """Reads prompts for one generation model.

    It runs beside the step thread, and so uses the Rust tokenizer alone: transformers' wrapper around it changes
    its settings at each call, which fails ("Already borrowed") while the other thread decodes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._encoder = tokenizer.backend_tokenizer
        self._vocabulary = vocabulary
        self._max_model_len = max_model_len
        # Bytes of the longest token: what is longer than max_model_len of those need not be tokenized to be refused.
        self._longest = max((len(token.encode()) for token in self._encoder.get_vocab()), default=1)
        template = tokenizer.chat_template
        self._knows_developer = "developer" in (template if isinstance(template, str) else str(template or ""))

    def read(self, request: EngineRequest) -> Prompt:
        if request.kind == "chat":
            ids = self._encode(self._render(request.payload), add_special_tokens=False)
        elif request.kind == "completion":
            ids = self._completion(request.payload.get("prompt"))
        else:
            raise UnsupportedModel("This model does not support embeddings.")
        self._check_length(len(ids), request.sampling.max_tokens)
        structured = request.sampling.structured
        return Prompt(ids, grammar=None if structured is None else constraint(structured))

    def check_ids(self, ids: list[int], param: str) -> None:
        for token_id in ids:
            if not isinstance(token_id, int) or not 0 <= token_id < self._vocabulary:
                raise InvalidRequest(f"{token_id} is not a token id of this model.", param=param)

    def _completion(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            ids = self._encode(prompt, add_special_tokens=True)
        elif isinstance(prompt, list):
            self.check_ids(prompt, "prompt")
            ids = list(prompt)
        else:
            raise InvalidRequest("'prompt' must be a string or a list of token ids.", param="prompt")
        if ids:
            return ids
        if not isinstance(self._tokenizer.bos_token_id, int):
            raise InvalidRequest("The prompt is empty, and this model has no token to begin with.", param="prompt")
        return [self._tokenizer.bos_token_id]

    def _render(self, payload: Mapping[str, Any]) -> str:
        if not self._tokenizer.chat_template:
            raise InvalidRequest("This model has no chat template; use /v1/completions, or give it a template.")
        messages = [self._message(message) for message in payload["messages"]]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is foreign code: whatever it raises is about these messages
            message = f"The model's chat template refuses these messages: {error}"
            raise InvalidRequest(message, param="messages") from error

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        read = dict(message)
        if read.get("content") is None:
            read["content"] = ""
        if read.get("role") == "developer" and not self._knows_developer:
            read["role"] = "system"
        return read

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        size = len(encodable(text))
        if size > self._longest * self._max_model_len:
            self._refuse(f"at least {size // self._longest} tokens")
        return list(self._encoder.encode(text, add_special_tokens=add_special_tokens).ids)

    def _check_length(self, prompt: int, max_tokens: int | None) -> None:
        # Not even room for one token, unless none is asked for.
        if prompt >= self._max_model_len and not (max_tokens == 0 and prompt == self._max_model_len):
            self._refuse(f"{prompt} tokens")

    def _refuse(self, amount: str) -> None:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {self._max_model_len} tokens. However, your messages resulted "
            f"in {amount}. Please reduce the length of the messages."
        )


def encodable(text: str) -> bytes:
    """The text in UTF-8; half of a surrogate pair, which JSON can carry, is the client's mistake."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The text is not valid Unicode: {error.reason} at character {error.start}.") from error
