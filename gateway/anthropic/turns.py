"""The turns of a conversation, as Anthropic writes them and as chat messages."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import Field, model_validator

from gateway.schemas.base import CacheHint, DirectCaller, FreeForm, Strict, kind_of
from gateway.schemas.chat import MAX_PARTS

Kind = TypeVar("Kind", bound=Strict)


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: CacheHint = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: FreeForm
    cache_control: CacheHint = None
    caller: DirectCaller | None = None


def check_blocks(content: Any, *kinds: str) -> None:
    """Raises ValueError for a block of another kind: what pydantic would say of it is long."""
    for block in content if isinstance(content, list) else ():
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in kinds:
            allowed = ", ".join(kinds)
            raise ValueError(
                f"content blocks of type {kind_of(block)} are not supported here; this server takes {allowed}"
            )
        if kind == "tool_result":
            check_blocks(block.get("content"), "text")


Texts = Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)]


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Texts | None = None
    is_error: bool | None = None
    cache_control: CacheHint = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]
KINDS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "tool_use"),
    "system": ("text",),
}


class Turn(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=MAX_PARTS, fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def _known_blocks(cls, turn: Any) -> Any:
        if isinstance(turn, dict) and isinstance(role := turn.get("role"), str) and role in KINDS:
            check_blocks(turn.get("content"), *KINDS[role])
        return turn

    @property
    def blocks(self) -> list[Block]:
        if isinstance(self.content, str):
            return [TextBlock(type="text", text=self.content)] if self.content else []
        return self.content


def conversation(system: str | Sequence[TextBlock] | None, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """As chat messages. Turns of one role that follow each other are one, as Anthropic says. Raises ValueError for the
    result of a tool that was not called."""
    messages = [{"role": "system", "content": text}] if (text := text_of(system)) else []
    called: set[str] = set()
    for role, blocks in _merged(turns):
        if role == "assistant":
            called.update(block.id for block in blocks if isinstance(block, ToolUseBlock))
            messages.append(_assistant(blocks))
        elif role == "system":
            messages.append({"role": "system", "content": text_of(_of(TextBlock, blocks))})
        else:
            messages += _user(blocks, called)
    return messages


def text_of(content: str | Sequence[TextBlock] | None) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content or ())


def _merged(turns: Sequence[Turn]) -> Iterator[tuple[str, list[Block]]]:
    role, blocks = "", list[Block]()
    for turn in turns:
        if turn.role != role:
            if role:
                yield role, blocks
            role, blocks = turn.role, []
        blocks += turn.blocks
    if role and (blocks or role != "assistant"):  # an empty last one asks for nothing: it is the reply's beginning
        yield role, blocks


def _of(kind: type[Kind], blocks: Sequence[Block]) -> list[Kind]:
    return [block for block in blocks if isinstance(block, kind)]


def _assistant(blocks: Sequence[Block]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text_of(_of(TextBlock, blocks))}
    if thoughts := [block.thinking for block in _of(ThinkingBlock, blocks)]:
        message["reasoning_content"] = "\n".join(thoughts)
    if uses := _of(ToolUseBlock, blocks):
        message["tool_calls"] = [
            {"id": use.id, "function": {"name": use.name, "arguments": orjson.dumps(use.input).decode()}}
            for use in uses
        ]
    return message


def _user(blocks: Sequence[Block], called: set[str]) -> Iterator[dict[str, Any]]:
    """Results of tools are messages of their own, where they stand."""
    texts: list[TextBlock] = []
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            if texts:
                yield {"role": "user", "content": text_of(texts)}
                texts = []
            yield _result(block, called)
        elif isinstance(block, TextBlock):
            texts.append(block)
    if texts or not blocks:
        yield {"role": "user", "content": text_of(texts)}


def _result(block: ToolResultBlock, called: set[str]) -> dict[str, Any]:
    if block.tool_use_id not in called:
        raise ValueError(f"a 'tool_result' is of {block.tool_use_id!r}, which no 'tool_use' before it has as its id")
    text = text_of(block.content)
    return {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "content": f"Error: {text}" if block.is_error else text,
    }
