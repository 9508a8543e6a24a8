"""Chat messages as the text of a prompt, through the model's chat template, whatever that knows of tools."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from jinja2 import TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerFast

from shared.errors import InvalidRequest
from worker.engines.dialects.dialect import Dialect
from worker.engines.dialects.tools import Tool

PROBE_TOOL, PROBE_CALL, PROBE_ID = "probe_of_tools", "probe_of_calls", "abcdefghi"
USER = {"role": "user", "content": "Hi"}
RESULT = {"role": "tool", "tool_call_id": PROBE_ID, "name": PROBE_CALL, "content": "probe of results"}
RESERVED = {"messages", *signature(PreTrainedTokenizerFast.apply_chat_template).parameters}
SWITCHES = ("enable_thinking", "thinking")
EFFORT = "reasoning_effort"

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chat:
    """What a prompt is made of. `variables` are for the template."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True


class ChatTemplate:
    """A tokenizer's template; what it can do is found out by trying. What it cannot, is put in words.

    shows_tools: those that it is given, in the dialect that the reply is then read in.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template or ""
        self.source = "\n".join(template.values()) if isinstance(template, dict) else str(template)
        self._variables = _variables_of(self.source)

    def use(self, dialect: Dialect | None, *, tools_in_template: bool) -> None:
        """Finds out how to say things in this dialect."""
        self._dialect = dialect
        self._knows_developer = "developer" in self.source
        tool = Tool(PROBE_TOOL).for_template()
        self.shows_tools = tools_in_template and PROBE_TOOL in self._try([USER], [tool])
        tools = [tool] if self.shows_tools else None  # some templates are for chats with tools alone
        self._takes_system = bool(self._try([{"role": "system", "content": "Hi"}, USER], tools))
        called = [_calling(arguments) for arguments in ({"key": "value"}, '{"key": "value"}')]
        # Templates are written for the first form; a few join arguments to a string, which must be one then.
        shown = [PROBE_CALL in self._try([USER, calling, RESULT], tools) for calling in called]
        self._takes_dicts = shown[0]
        self._shows_calls = tools_in_template and any(shown)
        calling = called[shown.index(True)] if self._shows_calls else {"role": "assistant", "content": "Hi"}
        self._takes_results = RESULT["content"] in self._try([USER, calling, RESULT], tools)

    def _try(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> str:
        try:
            return self._apply(messages, tools=tools, add_generation_prompt=True)
        except Exception:
            return ""

    def _apply(self, messages: Sequence[Message], **arguments: Any) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments))

    def render(self, chat: Chat) -> str:
        """Raises InvalidRequest for whatever the template does not take."""
        if not self.source:
            raise InvalidRequest("This model has no chat template; use /v1/completions, or give it a template.")
        variables = {**self._reasoning(chat.reasoning_effort), **chat.variables}
        if reserved := RESERVED & variables.keys():
            message = f"'{min(reserved)}' is not a variable of the template that a request may set."
            raise InvalidRequest(message, param="chat_template_kwargs")
        try:
            return self._rendered(chat, variables)
        except Exception as error:  # a template is foreign code: whatever it raises is about these messages
            message = f"The model's chat template refuses these messages: {error}"
            raise InvalidRequest(message, param="messages") from error

    def _rendered(self, chat: Chat, variables: Mapping[str, Any]) -> str:
        tools = [tool.for_template() for tool in chat.tools] if chat.tools and self.shows_tools else None
        messages = list(self._messages(chat.messages))
        if chat.tools and not self.shows_tools:
            messages = self._with_instructions(messages, chat.tools)
        if chat.continue_final_message:
            return self._apply(messages, tools=tools, continue_final_message=True, **variables)
        return self._apply(messages, tools=tools, add_generation_prompt=chat.add_generation_prompt, **variables)

    def _reasoning(self, effort: str | None) -> dict[str, Any]:
        """The template's variables that turn thinking on, off, or to that effort."""
        if effort is None:
            return {}
        switches: dict[str, Any] = {name: effort != "none" for name in SWITCHES if name in self._variables}
        if EFFORT in self._variables and not (switches and effort == "none"):
            switches[EFFORT] = effort
        if not switches and effort != "none":
            message = (
                f"This model cannot be told how hard to think; 'reasoning_effort' can only be 'none', not {effort!r}."
            )
            raise InvalidRequest(message, param="reasoning_effort")
        return switches

    def _messages(self, messages: Sequence[Message]) -> Iterator[Message]:
        names: dict[str, str] = {}  # of the functions called so far, by the call's id
        for message in messages:
            read = {**message, "content": message.get("content") or ""}
            role = read.get("role")
            if role == "developer" and not self._knows_developer:
                read["role"] = "system"
            elif role in ("tool", "function"):
                read = self._result(read, names)
            elif read.get("tool_calls"):
                names |= {call["id"]: call["function"]["name"] for call in read["tool_calls"]}
                read = self._called(read)
            yield read

    def _called(self, message: dict[str, Any]) -> Message:
        calls = message["tool_calls"]
        if self._shows_calls:
            calls = [_call(self._id(call["id"]), call["function"]["name"], self._arguments(call)) for call in calls]
            return {**message, "tool_calls": calls}
        written = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        text = self._dialect.write(written) if self._dialect is not None else json.dumps(written)
        content = f"{message['content']}\n{text}" if message["content"] else text
        return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": content}

    def _arguments(self, call: Mapping[str, Any]) -> Any:
        written = call["function"]["arguments"]
        if not self._takes_dicts:
            return written
        try:
            arguments = json.loads(written or "{}")
        except (ValueError, RecursionError):
            return written
        return arguments if isinstance(arguments, dict) else written

    def _result(self, message: dict[str, Any], names: Mapping[str, str]) -> Message:
        if not self._takes_results:
            return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        id = message.get("tool_call_id", "")
        name = message.get("name") or names.get(id)
        return {
            "role": "tool",
            "content": message["content"],
            **({"tool_call_id": self._id(id)} if id else {}),
            **({"name": name} if name else {}),
        }

    def _id(self, id: str) -> str:
        """Mistral's templates refuse ids that are not nine letters and digits."""
        if self._dialect is None or self._dialect.name != "mistral" or re.fullmatch("[a-zA-Z0-9]{9}", id):
            return id
        return hashlib.blake2s(id.encode(errors="replace")).hexdigest()[:9]

    def _with_instructions(self, messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
        assert self._dialect is not None
        text = instructions(self._dialect, tools)
        role = "system" if self._takes_system else "user"
        if messages and messages[0].get("role") == role:
            first = messages[0]
            content = f"{first['content']}\n\n{text}" if role == "system" else f"{text}\n\n{first['content']}"
            return [{**first, "content": content}, *messages[1:]]
        return [{"role": role, "content": text}, *messages]


def instructions(dialect: Dialect, tools: Sequence[Tool]) -> str:
    """What a template that shows no tools leaves unsaid."""
    shown = "\n".join(json.dumps(tool.for_template()["function"], ensure_ascii=False) for tool in tools)
    example = dialect.write([("function-name", '{"argument-name": "value"}')])
    return (
        f"You can call these functions; each is given with the JSON schema of its arguments.\n<tools>\n{shown}\n"
        f"</tools>\nTo call a function, write its name and its arguments in exactly this form:\n{example}\n"
        "You will be told the result. Call a function only if it helps; else answer in plain words."
    )


def _call(id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _calling(arguments: Any) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [_call(PROBE_ID, PROBE_CALL, arguments)]}


def _variables_of(template: str) -> frozenset[str]:
    """The names that a template expects from outside."""
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)  # a tag that transformers adds to Jinja
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(plain)))
    except TemplateSyntaxError:
        return frozenset()
