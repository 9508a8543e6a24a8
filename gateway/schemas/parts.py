"""The parts of a message's content. One body may have a million of them, so each is made of what is read of it alone;
what else it says is looked at before."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gateway.schemas.base import kind_of


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    hints: ClassVar[frozenset[str]] = frozenset()  # what clients have in one besides, and no answer depends on
    known: ClassVar[frozenset[str]]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls.known = cls.hints | cls.model_fields.keys()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        model = handler.resolve_ref_schema(schema)
        model["properties"] |= {name: {"description": "a hint"} for name in sorted(cls.hints)}
        model["additionalProperties"] = {"type": "null"}
        return schema


class TextPart(Part):
    hints = frozenset({"annotations", "cache_control", "id", "index", "prompt_cache_breakpoint"})

    type: Literal["text"]
    text: str


class RefusalPart(Part):
    type: Literal["refusal"]
    refusal: str


PARTS: Mapping[str, type[Part]] = {"text": TextPart, "refusal": RefusalPart}


def check_parts(content: Any, kinds: Mapping[str, type[Part]]) -> None:
    """Raises ValueError for a part of another kind, and for a field that it cannot have: what pydantic would say of
    either is long."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"content parts of type {kind_of(part)} are not supported; this server takes text")
        known = kinds[kind].known
        if not known.issuperset(part):
            for name, value in part.items():
                if name not in known and value is not None:
                    raise ValueError(f"a content part of type {kind!r} cannot have {name!r}")
