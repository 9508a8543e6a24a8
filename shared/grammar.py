"""What a reply must look like, as the text of an llguidance grammar. No model and no tokenizer is needed for it: the
gateway checks here what the worker will compile.

llguidance bounds itself (LIMITS) in all but three things, which are bounded here, since a client writes the grammar:
  its length           it takes 128 Ki characters in less than a second, and some of it is quadratic
  its recursion        5,000 rules or $refs, each leading to the next, overflow a thread's usual stack; in 128 Ki
                       characters there is no chain that overflows STACK_BYTES
  what intersects      two 'multipleOf', 30 patterns or two terminals of Lark that must hold of one value take
                       minutes and gigabytes
So the worst that is let in takes about a second and 100 MiB.
"""

import functools
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from decimal import Decimal
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from shared.errors import InvalidRequest
from shared.messages import Structured

LONGEST = 128 * 1024  # characters
STACK_BYTES = 512 * 1024 * 1024  # of addresses; what is not used costs no memory
LARGEST_DIVISOR = 10_000  # of 'multipleOf': as many states
LEAST_NUMBER = -(10**18)  # an integer that may be no other than one near -2^63 ends the process
MOST_PATTERNS = 10  # in a schema in which one value must match several
# 2 kB a state; 2,000 items in a row are not enough for an object of 600 optional properties.
LIMITS = LLParserLimits(max_lexer_states=50_000, max_items_in_row=10_000, verbose_errors=False)

# How JSON is written. Between its parts is at most one space: whatever more the grammar allowed, a small model can fill
# with it the rest of its reply. No character is written as its code (\uXXXX): or the name of an additional property
# could be that of another one, whose value has another schema.
WRITTEN = {
    "whitespace_pattern": " ?",
    "item_separator": ",",
    "key_separator": ":",
    "json_allowed_escapes": '"\\\\bfnrt',
    "lenient": False,
}
ONLY_AS_CODES = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")  # what is then not written at all
# Keywords that say nothing of a value, and so intersect with nothing.
ANNOTATIONS = {"$comment", "$defs", "$id", "$schema", "definitions", "deprecated", "description", "title"}.union(
    {"default", "discriminator", "example", "examples", "nullable", "readOnly", "writeOnly", "x-guidance"}
)
# Of Lark: strings, regular expressions and comments.
LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//.*')
SHARED_BY_ALL = ("allOf", "anyOf", "oneOf", "$ref")


def constraint(structured: Structured, param: str | None = None) -> str:
    """The grammar in llguidance's JSON form, unchecked but for its length. Raises InvalidRequest."""
    try:
        text = _text(structured)
    except Exception as error:  # the converter of GBNF raises what it pleases
        raise InvalidRequest(f"The grammar cannot be read: {_first_line(str(error))}", param=param) from error
    _check_length(text, param)
    return text


def _text(structured: Structured) -> str:
    value = structured.value
    match structured.kind:
        case "json":
            schema = json_schema({"type": "object"} if value is True else value)
            return json.dumps({"grammars": [{"json_schema": schema}]})
        case "regex":
            return LLMatcher.grammar_from_regex(value)
        case "choice":
            texts = (json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(value))
            return _of_lark("start: " + " | ".join(texts))
        case "grammar":
            if len(value) > LONGEST:  # before it is converted, slowly
                return str(value)
            lark = any_to_lark(value)
            if re.search("[&~]", LITERALS.sub("", lark)):
                raise ValueError("'&' and '~' between terminals are not supported")
            return _of_lark(lark)


def _of_lark(lark: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": lark}]}, ensure_ascii=False)


def json_schema(schema: Any) -> dict[str, Any]:
    """The schema with WRITTEN in it, as it may stand after %json in a Lark grammar too."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    if not isinstance(schema, dict):
        raise ValueError("a schema must be an object or a boolean")
    return {**schema, "x-guidance": WRITTEN}


def check(grammar: str, param: str | None = None) -> None:
    """Raises InvalidRequest, in one line, for a grammar that is wrong, that nothing satisfies, that asks for something
    that would not be kept, or that is too large. Takes a millisecond, or at the worst about a second: then beside an
    event loop. Special tokens in it are checked by `compiled` alone, with the model's own."""
    try:
        matcher = compiled(grammar, _bytes_tokenizer(), param)
    except InvalidRequest as error:
        if "unknown special token" in error.message:
            return
        raise
    matcher.compute_bitmask()  # finds what nothing satisfies
    if matcher.is_error():
        raise _refusal(matcher.get_error(), param)


def compiled(grammar: str, tokenizer: LLTokenizer, param: str | None = None) -> LLMatcher:
    """The grammar at its beginning. Raises InvalidRequest."""
    _check_length(grammar, param)
    for schema in _schemas(grammar):
        _check_schema(schema, param)
    try:
        matcher: LLMatcher = _deep(lambda: LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS))
    except ValueError as error:
        raise _refusal(str(error), param) from error
    if matcher.is_error():
        raise _refusal(matcher.get_error(), param)
    if warnings := matcher.get_grammar_warnings():
        raise _refusal(warnings[0], param)
    return matcher


@functools.cache
def _bytes_tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def _deep(work: Callable[[], Any]) -> Any:
    """Calls it in a thread with a stack that recursion does not overflow: that would end the process. Raises ValueError
    for whatever goes wrong."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # a panic in llguidance is no Exception
            future.set_exception(ValueError(str(error)))

    usual = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="grammar")
        thread.start()
    finally:
        threading.stack_size(usual)
    thread.join()
    return future.result()


def _check_length(text: str, param: str | None) -> None:
    if len(text) > LONGEST:
        raise InvalidRequest(f"The grammar is longer than {LONGEST} characters.", param=param)


def _refusal(message: str, param: str | None) -> InvalidRequest:
    reason = "nothing satisfies it." if message.startswith("NoExtension") else _first_line(message)
    return InvalidRequest(f"The grammar or schema cannot be used: {reason}", param=param)


def _first_line(message: str) -> str:
    """What a message of several lines says: of a regular expression it is in the line that begins with 'error:'."""
    reason = re.search(r"^error: (.+)$", message, re.MULTILINE)
    return (reason[1] if reason else message.strip().partition("\n")[0])[:300]


def _schemas(grammar: str) -> Iterator[Any]:
    """The JSON schemas in a grammar, those within Lark included."""
    try:
        parts = json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    except (ValueError, RecursionError, KeyError) as error:
        raise InvalidRequest(f"The grammar cannot be read: {error}") from error
    for part in parts:
        yield part.get("json_schema")
        for place in re.finditer(r"%json\s*(?=\{)", part.get("lark_grammar") or ""):
            try:
                yield json.JSONDecoder().raw_decode(part["lark_grammar"], place.end())[0]
            except (ValueError, RecursionError):  # in a comment, a string: llguidance says so if it matters
                continue


def _check_schema(schema: Any, param: str | None) -> None:
    if any(number < LEAST_NUMBER for number in _numbers(schema)):
        raise _refusal("numbers below -10^18 are not supported.", param)
    divisors, patterns, intersects = [1], 0, False
    for node in _nodes(schema):
        if _counts_names(node):
            raise _refusal("'minProperties' is supported only where no property could be given twice.", param)
        if any(map(ONLY_AS_CODES.search, _strings([node.get("enum"), node.get("const")]))):
            raise _refusal("control characters in 'enum' or 'const' are not supported.", param)
        divisors.append(_divisor(node.get("multipleOf")))
        patterns += isinstance(node.get("pattern"), str) + len(_pattern_properties(node))
        intersects = intersects or _intersects(node)
    largest = max(divisors)
    if intersects:
        largest = functools.reduce(lambda product, one: min(product * one, LARGEST_DIVISOR + 1), divisors)
    if largest > LARGEST_DIVISOR:
        raise _refusal(f"'multipleOf' is supported up to {LARGEST_DIVISOR}, with 'allOf' all of them together.", param)
    if intersects and patterns > MOST_PATTERNS:
        raise _refusal(f"more than {MOST_PATTERNS} patterns, in schemas that are combined.", param)


def _values(value: Any) -> Iterator[Any]:
    """All that it is made of, but for the names in objects."""
    rest = [value]
    while rest:
        yield (one := rest.pop())
        if isinstance(one, dict | list):
            rest += one.values() if isinstance(one, dict) else one


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    return (value for value in _values(schema) if isinstance(value, dict))


def _numbers(schema: Any) -> Iterator[int | float]:
    return (value for value in _values(schema) if isinstance(value, int | float))


def _strings(constants: Any) -> Iterator[str]:
    return (value for value in _values(constants) if isinstance(value, str))


def _counts_names(node: dict[str, Any]) -> bool:
    """There must be more properties than those that are required and one more. A grammar counts one that is repeated
    twice, and no grammar can tell, where it has not their names."""
    least, required = node.get("minProperties"), node.get("required")
    if isinstance(least, bool) or not isinstance(least, int | float):
        return False
    is_closed = node.get("additionalProperties") is False and not _pattern_properties(node)
    return not is_closed and least > 1 + len(set(map(str, required)) if isinstance(required, list) else ())


def _pattern_properties(node: dict[str, Any]) -> dict[str, Any]:
    patterns = node.get("patternProperties")
    return patterns if isinstance(patterns, dict) else {}


def _divisor(value: Any) -> int:
    """The digits of a 'multipleOf', which make as many states; 1 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return 1
    number = Decimal(repr(value)).normalize().as_tuple()
    if not isinstance(number.exponent, int) or not -30 < number.exponent < 30:
        return LARGEST_DIVISOR + 1
    digits = int("".join(map(str, number.digits)))
    return digits * int(10 ** max(0, number.exponent))


def _intersects(node: dict[str, Any]) -> bool:
    """More than one schema must hold of one value, or must not of one name."""
    if len(_pattern_properties(node)) > 1:
        return True
    combined = [key for key in SHARED_BY_ALL if key in node]
    if not combined:
        return False
    several = isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1
    return several or len(node.keys() - ANNOTATIONS) > 1
