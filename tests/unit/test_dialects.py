"""Every dialect's calls are found in the text however it is cut, and what is no call stays text."""

import json
import random
from typing import Any, get_args

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from shared.messages import Progress
from worker.engines.dialects import DIALECTS, MAGISTRAL, OFF, REASONINGS, THINK, of, reasoning_of
from worker.engines.dialects.dialect import BareDialect, Dialect
from worker.engines.dialects.lark import Markers
from worker.engines.dialects.mistral import Mistral
from worker.engines.dialects.reply_form import ReplyForm
from worker.engines.dialects.tools import Tool, ToolUse
from worker.settings import ReasoningParser, ToolCallParser

NO_MARKERS = Markers(Tokenizer(BPE()))
TOOLS = (
    Tool("add", parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}),
    Tool("say", parameters={"type": "object", "properties": {"text": {"type": "string"}}}),
    Tool("now"),
)
ADD = ("add", {"a": 1, "b": -2})
SAY = ("say", {"text": 'é "}]</b>{\\ \n'})
NOW: tuple[str, dict[str, Any]] = ("now", {})
NEW_MISTRAL = Mistral("[ARGS]")
FORMS = [
    *(pytest.param(make(""), id=name) for name, make in DIALECTS.items()),
    pytest.param(NEW_MISTRAL, id="mistral with names"),
    pytest.param(Mistral("[ARGS][CALL_ID]"), id="mistral with ids"),
    pytest.param(DIALECTS["deepseek"]("```json"), id="deepseek with blocks"),
]


def pieces_of(text: str, seed: int) -> list[str]:
    """Seed 0: characters; 1: all at once; others: any pieces."""
    if seed < 2:
        return [text] if seed else list(text)
    chance, pieces = random.Random(seed), []
    while text:
        length = chance.randint(1, 7)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def read(dialect: Dialect | None, text: str, seed: int = 1, **options: Any) -> Progress:
    parser = ReplyForm(dialect, ToolUse(TOOLS), **options).parser(NO_MARKERS)
    assert parser is not None
    made = Progress()
    for piece in pieces_of(text, seed):
        made.add(parser.push(piece))
    made.add(parser.finish())
    return made


def calls_of(made: Progress) -> list[tuple[str, Any]]:
    assert [call.index for call in made.tool_calls] == list(range(len(made.tool_calls)))
    return [(call.name, json.loads(call.arguments)) for call in made.tool_calls]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("calls", [[ADD], [SAY, NOW], [NOW, ADD, SAY]], ids=["one", "two", "three"])
@pytest.mark.parametrize("dialect", FORMS)
def test_what_a_dialect_writes_it_reads(dialect: Dialect, calls: list[tuple[str, Any]], seed: int) -> None:
    made = read(dialect, dialect.write([(name, json.dumps(arguments)) for name, arguments in calls]), seed)
    assert (calls_of(made), made.text) == (calls, "")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dialect", [form for form in FORMS if not isinstance(form.values[0], BareDialect)])
def test_text_before_a_call_and_behind_it_is_text_without_the_white_space_between(dialect: Dialect, seed: int) -> None:
    written = dialect.write([("now", "{}")])
    made = read(dialect, f"Let me see <b>.\n\n{written}\n\nDone. ", seed)
    assert (made.text, calls_of(made)) == ("Let me see <b>.Done. ", [NOW])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dialect", FORMS)
@pytest.mark.parametrize("text", ["", " ", "Hi.\n", "a < b [TO <tool <｜tool", '{"a": 1}', "{", "\n{ ", "[1, 2]"])
def test_what_is_no_call_comes_out_as_it_is(dialect: Dialect, text: str, seed: int) -> None:
    made = read(dialect, text, seed)
    assert (made.text, made.tool_calls) == (text, [])


MALFORMED = [
    ("hermes", "a <tool_call>\nnothing\n</tool_call> b"),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add"'),
    ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 1'),
    ("hermes", '<tool_call>["add"]</tool_call>'),
    ("hermes", '<tool_call>{"name": ["add"], "arguments": {}}'),
    ("hermes", "<tool_call>"),
    ("llama3", '{"name": "Ann", "age": 5}'),
    ("llama3", '  {"result": {"name": "add", "parameters": {}}}'),
    ("llama3", "<|python_tag|>print(1)"),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS] [1, 2]"),
    ("mistral", "[TOOL_CALLS]unknown[ARGS]{}"),
    ("mistral", "[TOOL_CALLS]add[ARGS]none"),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add"),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>unknown\n```json\n{}\n```"),
    ("qwen3-coder", "<tool_call>\n<function=unknown>\n</function>\n</tool_call>"),
    ("qwen3-coder", "<tool_call>\n<function=add"),
    ("qwen3-coder", "<tool_call>add</tool_call>"),
    ("json", '[{"name": "unknown", "arguments": {}}]'),
    ("json", '{"name": "Ann", "age": 5}'),
    ("json", "<|tool_call|>none"),
    ("json", "[]"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "text"), MALFORMED)
def test_a_malformed_call_comes_out_as_text_rather_than_vanish(name: str, text: str, seed: int) -> None:
    made = read(DIALECTS[name](""), text, seed)
    assert (made.text, made.tool_calls) == (text, [])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dialect", FORMS)
def test_a_call_that_had_to_come_and_was_cut_off_leaves_no_text(dialect: Dialect, seed: int) -> None:
    written = dialect.write([("add", json.dumps({"a": 1})), ("now", "{}")])
    for end in range(len(written)):
        parser = ReplyForm(dialect, ToolUse(TOOLS, required=True)).parser(NO_MARKERS)
        assert parser is not None
        made = Progress()
        for piece in pieces_of(written[:end], seed):
            made.add(parser.push(piece))
        made.add(parser.finish())
        assert made.text == "", written[:end]


VARIANTS = [
    ("hermes", '<tool_call>{ "arguments": {"a": 1, "b": -2}, "name": "add"}</tool_call>'),
    ("hermes", '<tool_call>{"name":"add","arguments":"{\\"a\\": 1, \\"b\\": -2}"}</tool_call>'),
    ("hermes", '<tool_call>{"id": "x", "name": "add", "arguments": {"a": 1, "b": -2}, "type": "function"}'),
    ("hermes", '<tool_call>{"type": "function", "name": "add", "parameters": {"a": 1, "b": -2}}'),
    ("llama3", '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": -2}}'),
    ("llama3", '\n{"type": "function", "name": "add", "parameters": {"a": 1, "b": -2}}'),
    ("mistral", '[TOOL_CALLS] [{"arguments": {"a": 1, "b": -2}, "name": "add", "id": "abcdefghi"}]'),
    ("mistral", '[TOOL_CALLS]{"name": "add", "arguments": {"a": 1, "b": -2}}'),
    ("mistral", '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1, "b": -2}'),
    ("mistral", '[TOOL_CALLS]add{"a": 1, "b": -2}'),
    ("deepseek", '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "b": -2}<｜tool▁call▁end｜>'),
    ("json", '{"name": "add", "arguments": {"a": 1, "b": -2}}'),
    ("json", '\n<|tool_call|> [ {"arguments": {"a": 1, "b": -2}, "name": "add"} ]'),
    ("json", '[{"type": "function", "name": "add", "parameters": {"a": 1, "b": -2}}'),
    ("qwen3-coder", "<function=add><parameter=a>1</parameter><parameter=b>-2</parameter></function>"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "text"), VARIANTS)
def test_calls_that_are_written_a_little_differently_are_calls_too(name: str, text: str, seed: int) -> None:
    made = read(DIALECTS[name](""), text, seed)
    assert (calls_of(made), made.text) == ([ADD], "")


@pytest.mark.parametrize(
    "dialect", [form for form in FORMS if form.id != "qwen3-coder"]
)  # whose values are not JSON until they are whole
def test_arguments_come_piece_by_piece_behind_the_name_and_the_name_once(dialect: Dialect) -> None:
    parser = ReplyForm(dialect, ToolUse(TOOLS)).parser(NO_MARKERS)
    assert parser is not None
    written = dialect.write([("say", '{"text": "one two"}')])
    pieces = [piece for character in written for piece in parser.push(character).tool_calls]
    assert [piece.name for piece in pieces] == ["say"] + [""] * (len(pieces) - 1)
    assert len(pieces) == len('{"text": "one two"}')
    assert "".join(piece.arguments for piece in pieces) == '{"text": "one two"}'


PIECES = ('{"name": "add", "arguments": ', '{"a": 1}', " ", "\n", "add", "```", "é", "🐲", *'{}[]",:\\')


def garbage(dialect: Dialect, seed: int) -> str:
    """Markers, halves of them, pieces of calls and whole ones."""
    chance = random.Random(seed)
    markers = (*dialect.markers, THINK.begin, THINK.end, "<function=add>", "<parameter=a>", "</parameter>")
    parts = []
    for _ in range(chance.randint(2, 8)):
        whole = chance.choice((*markers, *PIECES, dialect.write([("add", '{"a": "x<y"}'), ("now", "{}")])))
        parts.append(whole if chance.random() < 0.7 else whole[: chance.randint(0, len(whole))])
    return "".join(parts)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("dialect", FORMS)
def test_whatever_a_model_writes_is_read_alike_wherever_it_is_cut(dialect: Dialect, seed: int) -> None:
    text, options = garbage(dialect, seed), {"reasoning": THINK} if seed % 2 else {}
    whole = read(dialect, text, **options)
    for cut in range(1, len(text)):
        parser = ReplyForm(dialect, ToolUse(TOOLS), **options).parser(NO_MARKERS)
        assert parser is not None
        made = parser.push(text[:cut])
        made.add(parser.push(text[cut:]))
        made.add(parser.finish())
        assert made == whole, cut
    if not (options or whole.tool_calls):
        assert whole.text == text


def test_a_call_that_is_cut_off_keeps_what_there_is_of_its_arguments() -> None:
    made = read(DIALECTS["hermes"](""), '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b"')
    assert [(call.name, call.arguments) for call in made.tool_calls] == [("add", '{"a": 1, "b"')]


@pytest.mark.parametrize("length", range(40))
@pytest.mark.parametrize("dialect", FORMS)
def test_a_call_whose_end_is_cut_off_leaves_no_half_marker_in_the_text(dialect: Dialect, length: int) -> None:
    written = dialect.write([("add", '{"a": 1, "b": -2}')])
    name = "qwen3-coder"
    whole = written.index("</parameter>", written.index("-2")) if dialect.name == name else written.index("-2}") + 2
    made = read(dialect, written[: whole + length], length)
    assert made.text == ""
    assert [call.name for call in made.tool_calls] == ["add"]


def test_a_value_is_text_or_json_as_the_schema_says() -> None:
    text = "<tool_call>\n<function=say>\n<parameter=text>\n123\n</parameter>\n</function>\n</tool_call>"
    assert calls_of(read(DIALECTS["qwen3-coder"](""), text)) == [("say", {"text": "123"})]
    text = "<tool_call>\n<function=add>\n<parameter=a>\n123\n</parameter>\n</function>\n</tool_call>"
    assert calls_of(read(DIALECTS["qwen3-coder"](""), text)) == [("add", {"a": 123})]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("reasoning", [THINK, MAGISTRAL])
def test_thoughts_are_told_from_the_text_and_from_calls(reasoning: Any, seed: int) -> None:
    text = f"{reasoning.begin}\nWell < 3, so\n\nyes. \n{reasoning.end}\n\nIt is.\n"
    made = read(None, text, seed, reasoning=reasoning)
    assert (made.reasoning, made.text) == ("Well < 3, so\n\nyes.", "It is.\n")
    hermes = DIALECTS["hermes"]("")
    made = read(hermes, f"I call <tool_call>?{reasoning.end}\n{hermes.write([('now', '{}')])}", seed, begun=True,
                reasoning=reasoning)  # fmt: skip
    assert (made.reasoning, made.text, calls_of(made)) == ("I call <tool_call>?", "", [NOW])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", ["", "Yes.", " <b", "Not <think> here</think>.", "\n\nYes"])
def test_a_reply_without_thoughts_is_text(text: str, seed: int) -> None:
    made = read(None, text, seed, reasoning=THINK)
    assert (made.reasoning, made.text) == ("", text)


def test_thoughts_that_never_end_are_thoughts() -> None:
    made = read(None, "<think>I wonder", 0, reasoning=THINK)
    assert (made.reasoning, made.text) == ("I wonder", "")
    made = read(None, "I wonder\n", 0, reasoning=THINK, begun=True)
    assert (made.reasoning, made.text) == ("I wonder\n", "")


def test_the_parser_knows_when_it_reads_thoughts() -> None:
    parser = ReplyForm(reasoning=THINK).parser(NO_MARKERS)
    assert parser is not None
    seen = []
    for piece in ("<think>", "a", "</think>", "b"):
        parser.push(piece)
        seen.append(parser.is_reasoning)
    assert seen == [True, True, False, False]


def test_a_reply_that_can_be_text_alone_has_no_parser() -> None:
    assert ReplyForm(DIALECTS["hermes"](""), None).parser(NO_MARKERS) is None


TEMPLATES = [
    ("<tool_call>\\n{'name': name, 'arguments': ...}</tool_call>", "hermes", True),
    ("<tool_call>\n<function=f>\n<parameter=a>", "qwen3-coder", True),
    ("[TOOL_CALLS][", "mistral", True),
    ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek", True),
    ("<|python_tag|>", "llama3", True),
    ("<|tool_call|> followed by a JSON list", "json", True),
    ("{{ '\"parameters\": ' }} ipython", "llama3", True),
    ("<tool_call>f\n<arg_key>a</arg_key>", "hermes", False),
    ("<|im_start|>{{ role }}", "hermes", False),
]  # fmt: skip


@pytest.mark.parametrize(("template", "name", "own"), TEMPLATES)
def test_a_template_shows_its_dialect(template: str, name: str, own: bool) -> None:
    dialect, is_own = of(template)
    assert dialect is not None
    assert (dialect.name, is_own) == (name, own)


def test_every_dialect_has_a_name_on_the_command_line() -> None:
    assert set(get_args(ToolCallParser)) == {*DIALECTS, OFF}
    assert set(get_args(ReasoningParser)) == {*REASONINGS, OFF}


def test_a_dialect_can_be_named_and_turned_off() -> None:
    assert of("<tool_call>", "none")[0] is None
    named, _ = of("<tool_call>", "llama3")
    assert named is not None
    assert named.name == "llama3"
    assert reasoning_of("... </think>") is THINK
    assert reasoning_of("[/THINK]") is MAGISTRAL
    assert reasoning_of("</think>", "none") is None
    assert reasoning_of("", "think") is THINK
