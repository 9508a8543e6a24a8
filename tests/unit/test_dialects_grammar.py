"""What a grammar lets a model write is what the parser reads: random walks through it, with markers as text, as tokens
and as special tokens."""

import json
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from shared.errors import InvalidRequest
from shared.grammar import compiled, constraint
from shared.messages import Progress, Structured
from tests.unit.test_dialects import FORMS
from worker.engines.dialects import DIALECTS, MAGISTRAL, THINK
from worker.engines.dialects.dialect import BareDialect, Dialect
from worker.engines.dialects.lark import Markers
from worker.engines.dialects.reply_form import ReplyForm
from worker.engines.dialects.tools import Tool, ToolUse

WEATHER = {
    "type": "object",
    "properties": {
        "place": {"$ref": "#/$defs/place"},
        "days": {"type": "integer", "minimum": 1, "maximum": 12},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "exact": {"type": "boolean"},
        "at": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
    },
    "required": ["unit", "days"],
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer", "maximum": 9, "minimum": 0}},
                        "required": ["x"], "additionalProperties": False}},
}  # fmt: skip
TOOLS = (Tool("get_weather", "of a place", WEATHER, True), Tool("now"), Tool("stop-it", None, {}))
EITHER = [pytest.param(form.values[0], id=form.id) for form in FORMS]
REPLY = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


@lru_cache
def tokenizer(kind: str) -> tuple[Tokenizer, LLTokenizer]:
    """Byte-level; the dialects' markers are its special tokens, added tokens, or no tokens at all."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(['{"name": "get_weather", "arguments": {"unit": "C", "days": 1}}\n'] * 3, trainer)
    markers = {marker for make in DIALECTS.values() for marker in make("").markers}
    markers |= {text for reasoning in (THINK, MAGISTRAL) for text in (reasoning.begin, reasoning.end)}
    if kind == "special tokens":
        bpe.add_special_tokens([AddedToken(text, special=True) for text in sorted(markers)])
    elif kind == "added tokens":
        bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in sorted(markers)])
    return bpe, LLTokenizer(bpe.to_str(), eos_token=bpe.token_to_id("<|end|>"))


KINDS = ["text", "added tokens", "special tokens"]


class Walk:
    """A random reply that obeys a grammar, as tokens."""

    def __init__(self, grammar: str, kind: str, seed: int) -> None:
        self.tokenizer, self._ll = tokenizer(kind)
        self._end = self.tokenizer.token_to_id("<|end|>")
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._ll)
        assert not failed, messages
        self._matcher = LLMatcher(self._ll, grammar)
        self._chance = random.Random(seed)

    def allowed(self) -> list[int]:
        mask = self._matcher.compute_bitmask()
        return [token for token in range(self._ll.vocab_size) if mask[token // 8] >> (token % 8) & 1]

    def take(self, token: int) -> None:
        assert self._matcher.consume_token(token), self._matcher.get_error()

    def say(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        for token in ids:
            self.take(token)
        return list(ids)

    def to_the_end(self) -> Iterator[int]:
        for length in range(4000):
            if self._matcher.is_stopped():
                return
            allowed = self.allowed()
            ends = self._end in allowed
            choice = self._end if ends and (self._chance.random() < 0.3 or length > 300) else self._pick(allowed)
            if choice == self._end:
                return
            self.take(choice)
            yield choice
        raise AssertionError("the walk does not come to an end")

    def _pick(self, allowed: list[int]) -> int:
        """Tokens that end what is open are likelier, or strings go on and on."""
        markers = [token for token in allowed if self._ll.is_special_token(token)]
        others = set(allowed) - set(markers)
        ending = [token for token in sorted(others) if set(self.tokenizer.decode([token], False)) & set('"}]<')]
        for likelier in (markers, ending):
            if likelier and self._chance.random() < 0.3:
                return self._chance.choice(likelier)
        return self._chance.choice([token for token in allowed if token != self._end] or allowed)


def read(reply: ReplyForm, walk: Walk, ids: list[int]) -> Progress:
    """By tokens, of which a reply's text has none that is special but for those that are kept."""
    parser = reply.parser(Markers(walk.tokenizer))
    assert parser is not None
    special = {id for id, token in walk.tokenizer.get_added_tokens_decoder().items() if token.special}
    made, waiting = Progress(), []
    for token in ids:
        if token in special and token not in parser.keep:
            continue
        waiting.append(token)
        if not (text := walk.tokenizer.decode(waiting, skip_special_tokens=False)).endswith("\ufffd"):
            made.add(parser.push(text))
            waiting = []
    made.add(parser.finish())
    return made


def check_calls(made: Progress, tools: tuple[Tool, ...] = TOOLS) -> list[str]:
    schemas = {tool.name: tool.schema for tool in tools}
    for number, call in enumerate(made.tool_calls):
        assert call.index == number
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    return [call.name for call in made.tool_calls]


def walked(reply: ReplyForm, kind: str, seed: int, structured: str | None = None) -> tuple[Progress, str]:
    grammar = reply.grammar(Markers(tokenizer(kind)[0]), structured)
    assert grammar is not None
    walk = Walk(grammar, kind, seed)
    ids = list(walk.to_the_end())
    return read(reply, walk, ids), walk.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", EITHER)
def test_forced_calls_are_valid_calls_and_nothing_else(dialect: Dialect, kind: str) -> None:
    several = 0
    for seed in range(12):
        made, text = walked(ReplyForm(dialect, ToolUse(TOOLS, required=True)), kind, seed)
        names = check_calls(made)
        assert names, text
        assert made.text == "", text
        several += len(names) > 1
    assert several or dialect.single


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", EITHER)
@pytest.mark.parametrize(
    "use",
    [
        ToolUse(TOOLS, required=True, parallel=False),
        ToolUse(TOOLS, required=True, names=("now",)),
    ],
    ids=["no parallel calls", "a named function"],
)
def test_one_call_is_one_call(dialect: Dialect, kind: str, use: ToolUse) -> None:
    for seed in range(4):
        made, _ = walked(ReplyForm(dialect, use), kind, seed)
        (name,) = check_calls(made)
        assert name in [tool.name for tool in use.callable]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", EITHER)
def test_a_reply_may_be_text_but_its_calls_are_valid(dialect: Dialect, kind: str) -> None:
    reply = ReplyForm(dialect, ToolUse(TOOLS, names=("get_weather",)))
    grammar = reply.grammar(Markers(tokenizer(kind)[0]), None)
    assert grammar is not None
    begin = "" if isinstance(dialect, BareDialect) else "Let me see. "
    for seed in range(4):
        walk = Walk(grammar, kind, seed)
        assert walk._end in walk.allowed()
        written = dialect.write([("get_weather", "{}")])
        head = written[: written.index("get_weather")].rstrip()
        ids = walk.say(begin + (head if dialect.name != "mistral" else "[TOOL_CALLS]"))
        ids += walk.to_the_end()
        made = read(reply, walk, ids)
        assert set(check_calls(made)) == {"get_weather"}
        assert made.text == begin.rstrip()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", EITHER)
def test_text_alone_ends_where_it_likes(dialect: Dialect, kind: str) -> None:
    reply = ReplyForm(dialect, ToolUse(TOOLS))
    grammar = reply.grammar(Markers(tokenizer(kind)[0]), None)
    assert grammar is not None
    walk = Walk(grammar, kind, 0)
    ids = walk.say('No < need {"a": [TOOL] `1` for tools.')
    assert walk._end in walk.allowed()
    assert read(reply, walk, ids).text == 'No < need {"a": [TOOL] `1` for tools.'


@pytest.mark.parametrize("dialect", EITHER)
def test_a_marker_that_is_a_token_cannot_be_spelled_around_the_constraint(dialect: Dialect) -> None:
    grammar = ReplyForm(dialect, ToolUse(TOOLS)).grammar(Markers(tokenizer("special tokens")[0]), None)
    assert grammar is not None
    walk = Walk(grammar, "special tokens", 0)
    walk.say("Well, " + dialect.markers[0][:-1])
    assert walk.tokenizer.token_to_id(dialect.markers[0][-1]) not in walk.allowed()
    assert walk.tokenizer.token_to_id("a") in walk.allowed()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialect", EITHER)
def test_beside_a_response_format_a_reply_is_of_that_form_or_a_call(dialect: Dialect, kind: str) -> None:
    structured, seen = constraint(Structured("json", REPLY)), set()
    for seed in range(30):
        made, text = walked(ReplyForm(dialect, ToolUse(TOOLS)), kind, seed, structured)
        if made.text:
            assert not made.tool_calls, text
            jsonschema.validate(json.loads(made.text), REPLY)
        else:
            assert check_calls(made), text
        seen.add(bool(made.text))
    assert len(seen) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reasoning", [THINK, MAGISTRAL])
@pytest.mark.parametrize("begun", [True, False])
def test_a_constraint_begins_behind_the_thoughts(reasoning: Any, begun: bool, kind: str) -> None:
    structured = constraint(Structured("json", REPLY))
    for reply in (
        ReplyForm(reasoning=reasoning, begun=begun),
        ReplyForm(DIALECTS["hermes"](""), ToolUse(TOOLS, required=True), reasoning, begun),
    ):
        grammar = reply.grammar(Markers(tokenizer(kind)[0]), structured)
        assert grammar is not None
        walk = Walk(grammar, kind, 1)
        ids = [] if begun else walk.say(reasoning.begin)
        ids += walk.say("\nWell, {no}.\n" + reasoning.end)
        ids += walk.to_the_end()
        made = read(reply, walk, ids)
        assert made.reasoning == "Well, {no}."
        if reply.use is None:
            jsonschema.validate(json.loads(made.text), REPLY)
        else:
            assert check_calls(made)


@pytest.mark.parametrize(
    "structured",
    [
        Structured("choice", ["green", "blue"]),
        Structured("regex", "green|blue"),
        Structured("grammar", 'root ::= "green" | "blue"'),
        Structured("grammar", 'start: "green" | "blue"'),
    ],
    ids=lambda structured: structured.kind,
)
def test_a_constraint_of_any_kind_begins_behind_the_thoughts(structured: Structured) -> None:
    reply = ReplyForm(reasoning=THINK, begun=True)
    grammar = reply.grammar(Markers(tokenizer("special tokens")[0]), constraint(structured))
    assert grammar is not None
    walk = Walk(grammar, "special tokens", 1)
    ids = walk.say("Red?" + THINK.end)
    made = read(reply, walk, ids + list(walk.to_the_end()))
    assert made.reasoning == "Red?"
    assert made.text.strip() in ("green", "blue")


def test_without_thoughts_the_constraint_begins_at_once() -> None:
    reply = ReplyForm(reasoning=THINK)
    for seed in range(20):
        made, text = walked(reply, "special tokens", seed, constraint(Structured("json", REPLY)))
        if not made.reasoning and "<think>" not in text:
            jsonschema.validate(json.loads(made.text), REPLY)
            return
    raise AssertionError("no walk without thoughts")


@pytest.mark.parametrize("use", [ToolUse(TOOLS[1:]), None])
def test_what_need_not_be_forced_costs_nothing(use: ToolUse | None) -> None:
    assert ReplyForm(DIALECTS["hermes"](""), use).grammar(Markers(tokenizer("text")[0]), None) is None


def test_a_strict_tool_whose_schema_cannot_be_kept_is_refused() -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(InvalidRequest, match=r"'f' must obey.*uniqueItems") as caught:
        _ = Tool("f", parameters=odd, strict=True).schema
    assert caught.value.param == "tools"
    assert Tool("f", parameters=odd).schema["properties"] == {"a": {"type": "array"}}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_what_is_forced_is_strict(mode: str) -> None:
    use = ToolUse.read({"tools": [{"name": "f"}, {"name": "g", "strict": True}], "tool_choice": {"mode": mode}})
    assert use is not None
    assert [tool.strict for tool in use.tools] == [mode == "required", True]


def test_arguments_are_not_closed_where_more_of_them_are_asked_for() -> None:
    parameters = {"properties": {"a": {"type": "integer"}}, "required": ["a"], "minProperties": 2}
    schema = Tool("f", parameters=parameters, strict=True).schema
    assert schema["minProperties"] == 2
    assert "additionalProperties" not in schema


A_DATE = {"type": "string", "format": "date"}
BEYOND_QWEN = [
    ({"properties": {"a": A_DATE}}, "format"),
    ({"properties": {"a": {"type": "string", "anyOf": [{"minLength": 3}]}}}, "anyOf"),
    ({"properties": {"a": {"type": "object", "properties": {"b": {"$ref": "#"}}}}}, r"\$ref"),
    ({"properties": {"a": {"type": "string"}}, "required": ["a", "b"]}, "b"),
    ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}}, "anyOf"),
]


@pytest.mark.parametrize(("parameters", "word"), BEYOND_QWEN)
def test_what_a_form_without_quotes_cannot_keep_is_refused_if_it_is_strict(
    parameters: dict[str, Any], word: str
) -> None:
    def grammar(*, strict: bool) -> str | None:
        use = ToolUse((Tool("f", parameters=parameters, strict=strict),), parallel=False)
        return ReplyForm(DIALECTS["qwen3-coder"](""), use).grammar(Markers(tokenizer("text")[0]), None)

    with pytest.raises(InvalidRequest, match=f"'f' must obey '{word}'") as caught:
        grammar(strict=True)
    assert caught.value.param == "tools"
    loose = grammar(strict=False)
    assert loose is not None
    compiled(loose, tokenizer("text")[1])


MIXED = {
    "type": "object",
    "properties": {
        "few": {"type": "string", "enum": ["a\n", "\nb"]},
        "one": {"const": "x"},
        "any": {"enum": ["a", 1, None]},
        "maybe": {"type": ["string", "null"], "maxLength": 3},
        "deep": {"type": "object", "properties": {"c": {"$ref": "#/$defs/c"}}, "required": ["c"]},
        "true": True,
    },
    "required": ["few", "one", "any", "maybe", "deep"],
    "$defs": {"c": {"type": "integer"}},
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dialect", EITHER)
def test_arguments_of_any_kind_come_out_as_the_schema_wants_them(dialect: Dialect, seed: int) -> None:
    tools = (Tool("f", parameters=MIXED, strict=True),)
    made, _ = walked(ReplyForm(dialect, ToolUse(tools, required=True, parallel=False)), "text", seed)
    assert check_calls(made, tools) == ["f"]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "parameters",
    [{"type": "object", "properties": {"a": {"type": 5}}}, {"$ref": "#/nowhere"}, {"properties": 5}, nested(3000)],
    ids=["a type that is none", "a reference to nothing", "properties that are none", "too deep"],
)
def test_a_schema_that_cannot_be_read_allows_any_object_unless_the_tool_is_strict(parameters: dict[str, Any]) -> None:
    assert "properties" not in Tool("f", parameters=parameters).schema
    with pytest.raises(InvalidRequest):
        _ = Tool("f", parameters=parameters, strict=True).schema


def test_arguments_are_an_object_whatever_a_schema_says() -> None:
    assert Tool("f", parameters={"type": "string"}).schema["type"] == "object"
