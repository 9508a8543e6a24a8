"""What a reply must look like, as the text of an llguidance grammar. No model and no tokenizer is needed for it."""

import json

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from shared.messages import Structured


def constraint(structured: Structured) -> str:
    """The grammar in llguidance's JSON form, unchecked."""
    match structured.kind:
        case "json":
            schema = {"type": "object"} if structured.value is True else structured.value
            return LLMatcher.grammar_from_json_schema(json.dumps(schema))
        case "regex":
            return LLMatcher.grammar_from_regex(structured.value)
        case "choice":
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, structured.value)))
        case "grammar":
            return LLMatcher.grammar_from_lark(any_to_lark(structured.value))
