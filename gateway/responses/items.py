"""The items of a response's input and output, as they are sent and stored, and as chat messages."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from gateway.schemas.base import DirectCaller, NotHonoured, Strict, kind_of
from gateway.schemas.chat import MAX_MESSAGES, MAX_PARTS
from gateway.schemas.parts import Part, RefusalPart, check_parts
from gateway.schemas.wrong import wrong


class ItemText(Part):
    hints = frozenset({"annotations", "logprobs", "parsed", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str

    def stored(self) -> dict[str, Any]:
        return {"type": self.type, "text": self.text}


class ItemRefusal(RefusalPart):
    def stored(self) -> dict[str, Any]:
        return {"type": self.type, "refusal": self.refusal}


ItemPart = ItemText | ItemRefusal
Parts = Annotated[list[ItemPart], Field(max_length=MAX_PARTS, fail_fast=True)]
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
PARTS: Mapping[str, type[Part]] = {**dict.fromkeys(TEXTS, ItemText), "refusal": ItemRefusal}


def text_of(content: str | Sequence[ItemPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text if isinstance(part, ItemText) else part.refusal for part in content)


class _Item(Strict):
    PREFIX: ClassVar[str]  # of the ids that are given here

    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None  # a hint

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, item: Any) -> Any:
        if isinstance(item, dict):
            for name in ("content", "output", "summary"):
                check_parts(item.get(name), PARTS)
        return item


class MessageItem(_Item):
    PREFIX: ClassVar[str] = "msg"

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Parts
    phase: Literal["commentary", "final_answer"] | None = None  # a hint

    def stored(self, id: str) -> dict[str, Any]:
        kind = "output_text" if self.role == "assistant" else "input_text"
        extra: dict[str, Any] = {"annotations": [], "logprobs": []} if self.role == "assistant" else {}
        parts = [ItemText(type="input_text", text=self.content)] if isinstance(self.content, str) else self.content
        content = [part.stored() | ({"type": kind} | extra if isinstance(part, ItemText) else {}) for part in parts]
        return {"id": id, "type": "message", "role": self.role, "status": "completed", "content": content}


class FunctionCallItem(_Item):
    PREFIX: ClassVar[str] = "fc"

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str
    namespace: NotHonoured = None
    # Hints: only the model itself calls.
    caller: DirectCaller | None = None
    parsed_arguments: Any = None

    def stored(self, id: str) -> dict[str, Any]:
        call = {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        return {"type": self.type, **call, "id": id, "status": "completed"}


class FunctionOutputItem(_Item):
    PREFIX: ClassVar[str] = "fco"

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: str | Parts
    namespace: NotHonoured = None
    # Hints: the call tells both.
    name: str | None = None
    caller: DirectCaller | None = None

    def stored(self, id: str) -> dict[str, Any]:
        output = self.output if isinstance(self.output, str) else [part.stored() for part in self.output]
        return {"type": self.type, "call_id": self.call_id, "output": output, "id": id, "status": "completed"}


class ReasoningItem(_Item):
    PREFIX: ClassVar[str] = "rs"

    type: Literal["reasoning"]
    summary: Parts | None = None
    content: Parts | None = None
    encrypted_content: NotHonoured = None  # none is ever given out

    @property
    def text(self) -> str:
        return text_of(self.content or self.summary)

    def stored(self, id: str) -> dict[str, Any]:
        content = {} if self.content is None else {"content": [part.stored() for part in self.content]}
        return {"type": self.type, "id": id, "summary": [part.stored() for part in self.summary or ()]} | content


class ItemReference(Strict):
    """Stands for an item of a stored response."""

    type: Literal["item_reference"] | None = None
    id: str


KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _kind(item: dict[str, Any]) -> Any:
    return item.get("type") or ("message" if "role" in item else "item_reference")


def check_kinds(items: Sequence[Any]) -> None:
    """Raises ValueError for an item of another kind: what pydantic would say of it is long."""
    for item in items:
        if not isinstance(item, dict):
            raise ValueError("an item must be an object")
        if _kind(item) not in KINDS:
            raise ValueError(f"items of type {kind_of(item)} are not supported; this server takes {', '.join(KINDS)}")


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
]
Items = Annotated[list[Item], Field(max_length=MAX_MESSAGES, fail_fast=True)]
_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(Items)
Said = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem


def read_items(raw: list[Any]) -> list[Item]:
    """Raises ValueError with what is wrong."""
    check_kinds(raw)
    try:
        return _ITEMS.validate_python(raw)
    except ValidationError as error:
        raise ValueError(wrong(error, raw).message) from None


def check_whole(items: Sequence[Said]) -> None:
    """What is stored of a conversation. Raises ValueError for more than it may have, and for an id that comes twice:
    pages of items go on after one."""
    if len(items) > MAX_MESSAGES:
        raise ValueError(f"a conversation has at most {MAX_MESSAGES} items")
    seen: set[str] = set()
    for id in (item.id for item in items if item.id):
        if id in seen:
            raise ValueError(f"Item with id '{id}' comes twice in the conversation.")
        seen.add(id)


def stored_items(items: Iterable[Said], response_hex: str) -> list[dict[str, Any]]:
    """As they are listed and kept; those without an id get one that tells where they are."""
    return [item.stored(item.id or f"{item.PREFIX}_{response_hex}_i{place}") for place, item in enumerate(items)]


def conversation(instructions: str | None, items: Sequence[Said]) -> list[dict[str, Any]]:
    """As chat messages; thoughts, text and calls that follow each other are one of the assistant's. Raises ValueError
    for the output of a call that was not made."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    called: set[str] = set()
    for item in items:
        if isinstance(item, FunctionOutputItem):
            if item.call_id not in called:
                raise ValueError(f"No tool call found for function call output with call_id {item.call_id}.")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            messages.append({"role": item.role, "content": text_of(item.content)})
        else:
            called.update([item.call_id] if isinstance(item, FunctionCallItem) else [])
            _add_to_turn(messages, item)
    return messages


def _add_to_turn(messages: list[dict[str, Any]], item: MessageItem | FunctionCallItem | ReasoningItem) -> None:
    turn = messages[-1] if messages and messages[-1]["role"] == "assistant" else {}
    belongs = isinstance(item, FunctionCallItem) or not (turn.get("content") or turn.get("tool_calls"))
    if not turn or not belongs:
        turn = {"role": "assistant", "content": ""}
        messages.append(turn)
    if isinstance(item, MessageItem):
        turn["content"] = text_of(item.content)
    elif isinstance(item, ReasoningItem):
        turn["reasoning_content"] = "\n".join(filter(None, (turn.get("reasoning_content"), item.text)))
    else:
        call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
        turn.setdefault("tool_calls", []).append(call)
