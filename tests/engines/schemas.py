"""JSON schemas that are kept, by the keywords that they are about."""

from typing import Any

Schema = dict[str, Any]

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def of(properties: Schema, required: list[str] | None = None, **keywords: Any) -> Schema:
    """An object with these properties, all of which are required unless it is said which."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, **keywords}


def list_of(items: Schema, **keywords: Any) -> Schema:
    return {"type": "array", "items": items, **keywords}


def nested(depth: int) -> Schema:
    schema: Schema = INTEGER
    for level in range(depth):
        schema = of({"a": schema}) if level % 2 else list_of(schema, minItems=1, maxItems=1)
    return schema


NODE = of({"value": INTEGER, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}})
SHAPES = [of({"kind": {"const": name}, name: INTEGER}, additionalProperties=False) for name in ("circle", "square")]
FORMATS = ("date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")

SCHEMAS: dict[str, Schema] = {
    "anything": {},
    "any object": {"type": "object"},
    "an empty object": of({}, additionalProperties=False),
    "null": {"type": "null"},
    "types": {"type": ["string", "null", "integer"]},
    "enum": {"enum": ["a", 1, None, True, 1.5, [1], {"a": 2}, 'é"\\\n/', "🐲", "</tool_call>", "<|end|>"]},
    "large enum": {"enum": [f"value number {number}" for number in range(2000)]},
    "typed enum": {"type": "string", "enum": ["a", 1, "b"]},
    "const": {"const": {"a": [1, {"b": None}]}},
    "50 levels": nested(50),
    "closed": of({"a": of({"b": STRING}, additionalProperties=False)}, additionalProperties=False),
    "open": of({"a": INTEGER, "b": INTEGER}, []),
    "odd names": of({'é "q"\\': INTEGER, "🐲\n": INTEGER}),
    "required, not named": {"type": "object", "required": ["q"], "additionalProperties": INTEGER},
    "required, not named, beside properties": {"type": "object", "properties": {"a": INTEGER}, "required": ["a", "z"]},
    "additional": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    "additional, beside properties": {"type": "object", "properties": {"a": STRING}, "additionalProperties": INTEGER},
    "names by patterns": {"patternProperties": {"^x_": INTEGER, "^y_": STRING}, "additionalProperties": False},
    "names by a pattern": {"type": "object", "patternProperties": {"^x": INTEGER}},
    "at least one property": {"type": "object", "minProperties": 1},
    "no items": list_of(INTEGER, maxItems=0),
    "some items": list_of(INTEGER, minItems=2, maxItems=4),
    "first items": {"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2},
    "first items and others": {"type": "array", "prefixItems": [{"enum": ["x"]}], "items": INTEGER, "minItems": 3},
    "lists in lists": list_of(list_of(list_of(INTEGER, maxItems=2), maxItems=2), maxItems=2),
    "a list that ends": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    "a tree": of({"children": list_of({"$ref": "#"}, maxItems=2)}),
    "anyOf": {"anyOf": [INTEGER, {"type": "null"}, of({"x": STRING})]},
    "anyOf beside properties": {**of({"a": INTEGER}), "anyOf": [of({"b": INTEGER}), of({"c": INTEGER})]},
    "oneOf": {"oneOf": [INTEGER, STRING]},
    "oneOf by a constant": {"oneOf": SHAPES},
    "allOf": {"allOf": [of({"a": INTEGER}), of({"b": STRING})]},
    "allOf of bounds": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]},
    "integer": {"type": "integer", "minimum": -5, "maximum": 12},
    "integer between": {"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 120},
    "large integer": {"type": "integer", "minimum": 123456789012},
    "number": {"type": "number", "minimum": -1.5, "maximum": 2.25},
    "number between": {"type": "number", "exclusiveMinimum": 0.3, "exclusiveMaximum": 0.31},
    "number below": {"type": "number", "maximum": -3.7},
    "bounds of what may be no number": {"minimum": 5},
    "multiple": {"type": "integer", "multipleOf": 7},
    "multiple between": {"type": "integer", "multipleOf": 3, "minimum": 10, "maximum": 40},
    "multiple of a fraction": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 3},
    "length": {"type": "string", "minLength": 2, "maxLength": 6},
    "no length": {"type": "string", "maxLength": 0},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,4}$"},
    "pattern within": {"type": "string", "pattern": "[0-9]{3}"},
    "pattern of quotes": {"type": "string", "pattern": '^"\\\\[\\n\\t]$'},
    "pattern of Unicode": {"type": "string", "pattern": "^[é🐲]{2}$"},
    "pattern of either": {"type": "string", "pattern": "^(foo|bar)+$"},
    "pattern and length": {"type": "string", "pattern": "^[a-z]*$", "minLength": 3, "maxLength": 5},
    "pattern and format": {"type": "string", "pattern": "^1", "format": "ipv4"},
    **{format: {"type": "string", "format": format} for format in FORMATS},
}
