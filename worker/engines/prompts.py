"""A request's payload as token ids, and how its reply is read. What is wrong with it is said as InvalidRequest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerFast

from shared.errors import InvalidRequest, UnsupportedModel, UnsupportedParameter
from shared.grammar import constraint
from shared.logging import get_logger
from shared.messages import Progress
from worker.engines import dialects
from worker.engines.base import EngineRequest, Output
from worker.engines.chat_template import Chat, ChatTemplate
from worker.engines.dialects.lark import Markers
from worker.engines.dialects.reply_form import ReplyForm
from worker.engines.dialects.tools import ToolUse
from worker.engines.tokens import Tokens

log = get_logger(__name__)


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

    tool_call_parser, reasoning_parser: names of `dialects`; None for what the chat template shows.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        vocabulary: int,
        max_model_len: int,
        *,
        tool_call_parser: str | None = None,
        reasoning_parser: str | None = None,
    ) -> None:
        self._tokens = Tokens(tokenizer.backend_tokenizer, max_model_len)
        self._bos_id = tokenizer.bos_token_id
        self._vocabulary = vocabulary
        self._max_model_len = max_model_len
        self._markers = Markers(tokenizer.backend_tokenizer)
        self._template = ChatTemplate(tokenizer)
        self._dialect, in_template = dialects.of(self._template.source, tool_call_parser)
        self._reasoning = dialects.reasoning_of(self._template.source, reasoning_parser)
        self._template.use(self._dialect, tools_in_template=in_template)
        words = "" if self._template.shows_tools else ", in our words: the chat template shows no tools"
        log.info(
            "tool calls: %s; reasoning: %s",
            dialects.OFF if self._dialect is None else self._dialect.name + words,
            dialects.OFF if self._reasoning is None else self._reasoning.name,
        )

    def read(self, request: EngineRequest) -> Prompt:
        """The prompt of a chat or a completion."""
        structured = request.sampling.structured
        grammar = None if structured is None else constraint(structured, structured.param)
        if request.kind == "chat":
            prompt = self._chat(request.payload, grammar)
        elif request.kind == "completion":
            prompt = Prompt(self._completion(request.payload.get("prompt")), grammar=grammar)
        else:
            what = "embeddings" if request.kind == "embedding" else request.kind
            raise UnsupportedModel(f"This model does not support {what}.")
        self._check_length(len(prompt.ids), request.sampling.max_tokens)
        return prompt

    def answer(self, request: EngineRequest) -> Output | None:
        """Of what is answered at once: to tokenize and to detokenize."""
        return self._tokens.answer(
            request, lambda payload: self._template.render(self._chat_of(payload, ToolUse.read(payload)))
        )

    def check_ids(self, ids: list[int], param: str) -> None:
        for token_id in ids:
            if not isinstance(token_id, int) or not 0 <= token_id < self._vocabulary:
                raise InvalidRequest(f"{token_id} is not a token id of this model.", param=param)

    def _completion(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            ids = self._tokens.encode(prompt, add_special_tokens=True)
        elif isinstance(prompt, list):
            self.check_ids(prompt, "prompt")
            ids = list(prompt)
        else:
            raise InvalidRequest("'prompt' must be a string or a list of token ids.", param="prompt")
        return self._not_empty(ids)

    def _not_empty(self, ids: list[int]) -> list[int]:
        if ids:
            return ids
        if not isinstance(self._bos_id, int):
            raise InvalidRequest("The prompt is empty, and this model has no token to begin with.", param="prompt")
        return [self._bos_id]

    def _chat(self, payload: Mapping[str, Any], structured: str | None) -> Prompt:
        use = ToolUse.read(payload)
        text = self._template.render(self._chat_of(payload, use))
        ids = self._not_empty(self._tokens.encode(text, add_special_tokens=False))
        reply = self._reply(payload, use, text)
        return Prompt(ids, reply.parser(self._markers), reply.grammar(self._markers, structured))

    def _chat_of(self, payload: Mapping[str, Any], use: ToolUse | None) -> Chat:
        if use is not None and self._dialect is None:
            raise UnsupportedParameter("This model is served without tool calls.", param="tools")
        return Chat(
            payload["messages"],
            tools=() if use is None else use.tools,
            variables=payload.get("template") or {},
            reasoning_effort=payload.get("reasoning_effort"),
            continue_final_message=bool(payload.get("continue_final_message")),
            add_generation_prompt=payload.get("add_generation_prompt") is not False,
        )

    def _reply(self, payload: Mapping[str, Any], use: ToolUse | None, prompt: str) -> ReplyForm:
        dialect, reasoning = self._dialect if use is not None else None, self._reasoning
        if reasoning is None:
            return ReplyForm(dialect, use)
        if payload.get("continue_final_message"):  # what was said of thoughts, was said there
            said = str(payload["messages"][-1].get("content") or "")
            begun = said.rfind(reasoning.begin) > said.rfind(reasoning.end)
            return ReplyForm(dialect, use, reasoning if begun or not said else None, begun)
        end = prompt.rstrip()
        is_over = end.endswith(reasoning.end)
        return ReplyForm(dialect, use, None if is_over else reasoning, begun=end.endswith(reasoning.begin))

    def _check_length(self, prompt: int, max_tokens: int | None) -> None:
        # Not even room for one token, unless none is asked for.
        if prompt >= self._max_model_len and not (max_tokens == 0 and prompt == self._max_model_len):
            self._tokens.refuse(f"{prompt} tokens")
