"""A grammar is refused in one clear line, or kept to the letter; and it cannot hang or end a process."""

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from shared import grammar as grammars
from shared.errors import InvalidRequest
from shared.grammar import check, compiled, constraint
from shared.messages import Structured

STRING = {"type": "string"}


def accepts(kind: Any, value: Any, text: str) -> bool:
    """The text, and nothing more, satisfies it."""
    matcher = compiled(constraint(Structured(kind, value)), LLTokenizer("byte"))
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


def refusal(kind: Any, value: Any) -> str:
    with pytest.raises(InvalidRequest) as refused:
        check(constraint(Structured(kind, value), "response_format"), "response_format")
    assert refused.value.param == "response_format"
    assert "\n" not in refused.value.message
    return refused.value.message


@pytest.mark.parametrize(
    ("kind", "value", "right", "wrong"),
    [
        ("json", True, '{"a": [1, null]}', "[1]"),
        ("json", {"type": "array", "items": {"enum": ["x", 3]}}, '["x",3]', "[4]"),
        ("json", {"const": {"a": 1}}, '{"a":1}', '{"a":2}'),
        ("json", True, "{}", "{}{}"),
        ("regex", "[a-c]{2}-\\d", "ab-7", "ab-77"),
        ("choice", ["yes", "no", "no way", 'q"\\\n', "über 👩"], "no way", "no wa"),
        ("choice", ['q"\\\n'], 'q"\\\n', 'q"'),
        ("choice", ["über 👩", "über 👩"], "über 👩", "über"),
        ("grammar", 'start: "a" B+\nB: /[0-9]/', "a12", "a"),
        ("grammar", 'root ::= "a" [0-9]+ ("," | ";")?', "a12;", "a;"),
    ],
)
def test_what_is_right_is_let_through_and_nothing_else(kind: Any, value: Any, right: str, wrong: str) -> None:
    check(constraint(Structured(kind, value)))
    assert accepts(kind, value, right)
    assert not accepts(kind, value, wrong)


@pytest.mark.parametrize("written", [r'{"\u0061":"x"}', r'{"\u00e9":"x"}', '{"\\ud83d\\udc32":"x"}', r'{"\u0022":"x"}'])
def test_an_additional_property_cannot_have_the_name_of_another_one(written: str) -> None:
    """Spelled in another way, and with a value that its schema forbids."""
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in ("a", "é", "🐲", '"')}}
    assert not accepts("json", schema, written)
    assert accepts("json", schema, '{"b":"x"}')


def test_a_json_text_has_no_room_to_waste() -> None:
    assert accepts("json", True, '{"a": 1, "b": [2, 3]}')
    assert accepts("json", True, '{"a":1,"b":[2,3]}')
    assert not accepts("json", True, '{"a":  1}')
    assert not accepts("json", True, '{\n"a": 1}')


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (5, "must be an object or a boolean"),
        (False, "Unsatisfiable"),
        ({"type": 5}, "type must be a string"),
        ({"type": "integer", "minimum": "x"}, "Expected f64 for 'minimum'"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"enum": []}, "Unsatisfiable"),
        ({"required": ["a"], "properties": {"a": False}, "type": "object"}, "Unsatisfiable"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"$ref": "http://example.invalid/schema"}, "not present"),
        ({"not": STRING}, "Unimplemented keys"),
        ({"type": "array", "uniqueItems": True}, "Unimplemented keys"),
        ({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}, "Unimplemented keys"),
        ({"type": "string", "format": "zork"}, "Unknown format"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "object", "minProperties": 2}, "given twice"),
        ({"type": "object", "required": ["a"], "patternProperties": {"^x": {}}, "minProperties": 3}, "given twice"),
        ({"properties": {"a": {"enum": ["\x1b"]}}}, "control characters"),
        ({"properties": {"a": {"const": [{"b": "\x1b"}]}}}, "control characters"),
        ({"$ref": "#"}, "nothing satisfies it"),
        ({"multipleOf": 10_007}, "'multipleOf' is supported up to"),
        ({"allOf": [{"multipleOf": 1009}, {"multipleOf": 1013}]}, "'multipleOf' is supported up to"),
        ({"multipleOf": 1e300}, "'multipleOf' is supported up to"),
        ({"allOf": [{"pattern": f"x.{{{n}}}y"} for n in range(11)]}, "more than 10 patterns"),
        ({"patternProperties": {f"^x{n}.*": STRING for n in range(11)}}, "more than 10 patterns"),
        ({"enum": ["x" * 100] * 2000}, "longer than"),
        ({"const": "half \ud83d"}, ""),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(schema: Any, words: str) -> None:
    assert words in refusal("json", schema)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("regex", "(a|b", "unclosed group"),
        ("regex", "(?=a)", "look-around"),
        ("regex", "a[^\\s\\S]", ""),
        ("regex", "half \ud83d", "surrogates"),
        ("regex", "x" * 200_000, "longer than"),
        ("choice", ["x" * 200_000], "longer than"),
        ("grammar", "start: nope", "unknown name"),
        ("grammar", "nonsense", "cannot be read"),
        ("grammar", "root ::= (", "cannot be read"),
        ("grammar", 'root ::= "\\', "cannot be read"),
        ("grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "cannot be read"),
        ("grammar", "start: R\nR: /(a{1009})*/ & /(a{1013})*/", "'&' and '~'"),
        ("grammar", 'start: %json {"allOf": [{"multipleOf": 1009}, {"multipleOf": 1013}]}', "'multipleOf'"),
        ("grammar", "x" * 200_000, "longer than"),
    ],
)
def test_what_is_no_grammar_is_refused(kind: Any, value: Any, words: str) -> None:
    assert words in refusal(kind, value)


def test_a_grammar_over_which_the_library_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As those of Rust."""

    def panic(*_: Any, **__: Any) -> None:
        raise Panic("index out of bounds")

    monkeypatch.setattr(grammars, "LLMatcher", panic)
    with pytest.raises(InvalidRequest, match="cannot be used: index out of bounds"):
        compiled('{"grammars": []}', LLTokenizer("byte"))


def test_a_schema_deeper_than_any_recursion_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    assert "cannot be read" in refusal("json", schema)


@pytest.mark.parametrize("levels", [2500])
def test_a_long_chain_of_references_does_not_end_the_process(levels: int) -> None:
    links = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(levels)}
    check(constraint(Structured("json", {"$defs": {**links, f"d{levels}": STRING}, "$ref": "#/$defs/d0"})))
    rules = "\n".join(f"r{n}: r{n + 1}" for n in range(9000))
    check(constraint(Structured("grammar", f'start: r0\n{rules}\nr9000: "a"')))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "const": -(2**63)},
        {"type": "integer", "enum": [3, -1e30]},
        {"allOf": [{"type": "integer"}, {"minimum": -(2**63), "maximum": -(2**63) + 8}]},
    ],
)
def test_an_integer_at_the_end_of_its_range_does_not_end_the_process(schema: Any) -> None:
    assert "below -10^18" in refusal("json", schema)
    check(constraint(Structured("json", {"type": "integer", "enum": [-(10**18), 10**18, 1e300]})))


def test_patterns_of_fields_that_do_not_meet_are_as_many_as_one_likes() -> None:
    fields = {f"f{n}": {"type": "string", "pattern": f"^x{n}$"} for n in range(50)}
    optional = {"also": {"anyOf": [STRING, {"type": "null"}], "default": None, "title": "Also"}}
    check(constraint(Structured("json", {"type": "object", "properties": {**fields, **optional}})))


def test_special_tokens_are_left_to_who_has_the_tokenizer() -> None:
    lark = constraint(Structured("grammar", 'start: <|thought|> "a"'))
    check(lark)
    with pytest.raises(InvalidRequest, match="unknown special token"):
        compiled(lark, LLTokenizer("byte"))


def test_a_schema_within_lark_has_the_same_whitespace() -> None:
    lark = f"start: %json {json.dumps(grammars.json_schema({'type': 'object'}))}"
    assert accepts("grammar", lark, '{"a": 1}')
    assert not accepts("grammar", lark, '{"a":  1}')
