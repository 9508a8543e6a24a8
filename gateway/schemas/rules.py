"""What fields of a request have to do with each other, as far as a JSON schema can say it. For /openapi.json alone:
validators check what is asked."""

from typing import Any

Rule = dict[str, Any]

TRUE: Rule = {"const": True}
FILLED: Rule = {"type": ["array", "string"], "minItems": 1, "minLength": 1}
NOT_NULL: Rule = {"not": {"type": "null"}}


def given(name: str, value: Rule = NOT_NULL) -> Rule:
    return {"required": [name], "properties": {name: value}}


def needs(name: str, other: Rule, value: Rule = NOT_NULL) -> Rule:
    """Where `name` is given, `other` must hold."""
    return {"if": given(name, value), "then": other}


def both(one: Rule, other: Rule) -> Rule:
    return {"allOf": [one, other]}


def unsaid(name: str) -> Rule:
    return {"properties": {name: {"enum": [None, False]}}}


def just_one(*names: str, value: Rule = NOT_NULL) -> Rule:
    return {"oneOf": [given(name, value) for name in names]}
