"""How each kind of model writes tool calls and thoughts: read from its replies, and forced into them by grammars."""

from collections.abc import Callable

from worker.engines.dialects.deepseek import DeepSeek
from worker.engines.dialects.dialect import Dialect
from worker.engines.dialects.generic import Json
from worker.engines.dialects.hermes import Hermes
from worker.engines.dialects.llama3 import Llama3
from worker.engines.dialects.mistral import Mistral
from worker.engines.dialects.qwen3_coder import Qwen3Coder
from worker.engines.dialects.reasoning import MAGISTRAL, THINK, Reasoning

OFF = "none"

DIALECTS: dict[str, Callable[[str], Dialect]] = {  # made for a template
    "hermes": lambda template: Hermes(),
    "llama3": lambda template: Llama3(),
    "mistral": Mistral,
    "deepseek": DeepSeek,
    "qwen3-coder": lambda template: Qwen3Coder(),
    "json": lambda template: Json(),
}
REASONINGS = {reasoning.name: reasoning for reasoning in (THINK, MAGISTRAL)}


def of(template: str, name: str | None = None) -> tuple[Dialect | None, bool]:
    """The dialect of that name, or the one that a chat template shows; and whether it is the template's own.

    A template that knows no tools, or a dialect that we do not, gets Hermes's, with our words on how to use it.
    """
    if name is not None:
        return (None if name == OFF else DIALECTS[name](template)), True
    found = _name(template)
    return DIALECTS[found or "hermes"](template), found is not None


def reasoning_of(template: str, name: str | None = None) -> Reasoning | None:
    """The thoughts of that name, or those that a chat template shows."""
    if name is not None:
        return REASONINGS.get(name)
    return next((reasoning for reasoning in REASONINGS.values() if reasoning.end in template), None)


def _name(template: str) -> str | None:
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<｜tool▁call▁begin｜>" in template:
        return "deepseek"
    if Json.tag in template:
        return "json"
    if "<tool_call>" in template and not any(other in template for other in ("<arg_key>", "<tool_sep>")):
        return "qwen3-coder" if "<function=" in template else "hermes"
    if "<function=" in template:
        return None
    if "<|python_tag|>" in template or ('"parameters": ' in template and "ipython" in template):
        return "llama3"
    return None
