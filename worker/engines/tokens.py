"""Text to token ids and back, for any kind of model."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tokenizers import Tokenizer

from shared.errors import ContextLengthExceeded, InvalidRequest, UnsupportedModel
from shared.messages import Usage
from worker.engines.base import EngineRequest, Output


class Tokens:
    """A model's tokenizer, without a limit but that of memory.

    It runs beside the step thread, and so uses the Rust tokenizer alone: transformers' wrapper around it changes
    its settings at each call, which fails ("Already borrowed") while the other thread decodes.
    """

    def __init__(self, encoder: Tokenizer, max_model_len: int) -> None:
        self._encoder = encoder
        self._max_model_len = max_model_len
        # Bytes of the longest token: what is longer than max_model_len of those need not be tokenized to be refused.
        self._longest = max((len(token.encode()) for token in encoder.get_vocab()), default=1)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        size = len(encodable(text))
        if size > self._longest * self._max_model_len:
            self.refuse(f"at least {size // self._longest} tokens")
        return list(self._encoder.encode(text, add_special_tokens=add_special_tokens).ids)

    def answer(self, request: EngineRequest, render: Callable[[Mapping[str, Any]], str] | None = None) -> Output | None:
        """To tokenize and to detokenize is answered at once; None for all other requests. `render` a chat's payload."""
        if request.kind == "detokenize":
            return self._detokenized(request)
        if request.kind != "tokenize":
            return None
        if "messages" not in request.payload:
            return self._tokenized(request, request.payload.get("prompt"))
        if render is None:
            raise UnsupportedModel("This model does not chat; give it a 'prompt' to tokenize.")
        return self._tokenized(request, render(request.payload))

    def _tokenized(self, request: EngineRequest, text: Any) -> Output:
        if not isinstance(text, str):
            raise InvalidRequest("'prompt' must be a string.", param="prompt")
        ids = self.encode(text, add_special_tokens=bool(request.payload.get("add_special_tokens")))
        return _answer(request, {"tokens": ids, "token_strs": [self._encoder.id_to_token(id) for id in ids]}, len(ids))

    def _detokenized(self, request: EngineRequest) -> Output:
        ids = request.payload.get("tokens")
        if not isinstance(ids, list):
            raise InvalidRequest("'tokens' must be a list of token ids.", param="tokens")
        for id in ids:
            if type(id) is not int or not 0 <= id < 2**32 or self._encoder.id_to_token(id) is None:
                raise InvalidRequest(f"{id} is not a token id of this model.", param="tokens")
        return _answer(request, {"prompt": self._encoder.decode(ids, skip_special_tokens=False)}, len(ids))

    def refuse(self, amount: str) -> NoReturn:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {self._max_model_len} tokens. However, your messages resulted "
            f"in {amount}. Please reduce the length of the messages."
        )


def _answer(request: EngineRequest, result: Mapping[str, Any], tokens: int) -> Output:
    usage = Usage(prompt_tokens=tokens, completion_tokens=0)
    return Output(id=request.id, result=dict(result), finish_reason="stop", usage=usage)


def encodable(text: str) -> bytes:
    """The text in UTF-8; half of a surrogate pair, which JSON can carry, is the client's mistake."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The text is not valid Unicode: {error.reason} at character {error.start}.") from error
