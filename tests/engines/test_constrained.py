"""Replies that must follow a grammar do, however they are drawn, alone, in a crowd and resumed."""

import json
import re
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.messages import Resume, Structured
from tests.engines.driving import Answer, Stepping

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"enum": ["s", "m", "l"]},
        "of": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "size", "of"],
    "additionalProperties": False,
}
RANDOM: dict[str, Any] = {"temperature": 1.0, "max_tokens": 120}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"structured": Structured("json", SCHEMA), "max_tokens": 120},
    "seeded": {"structured": Structured("json", SCHEMA), **RANDOM, "seed": 3},
    "truncated": {"structured": Structured("json", SCHEMA), **RANDOM, "seed": 4, "top_p": 0.7, "top_k": 30},
    "penalties": {"structured": Structured("json", SCHEMA), **RANDOM, "frequency_penalty": 1.0, "seed": 5},
    "regex": {"structured": Structured("regex", "[a-f]{3,9}-\\d{2}"), **RANDOM, "seed": 6},
    "choice": {"structured": Structured("choice", ["yes", "no", "über 👩"]), **RANDOM, "seed": 7},
    "gbnf": {"structured": Structured("grammar", 'root ::= ("0" | "1"){8} "."'), **RANDOM, "seed": 8},
}


def is_right(name: str, text: str) -> bool:
    match name:
        case "regex":
            return re.fullmatch(r"[a-f]{3,9}-\d{2}", text) is not None
        case "choice":
            return text in ("yes", "no", "über 👩")
        case "gbnf":
            return re.fullmatch(r"[01]{8}\.", text) is not None
    read = json.loads(text)
    return list(read) == ["name", "size", "of"] and len(read["name"]) <= 12 and read["size"] in ("s", "m", "l")


@pytest.mark.parametrize("name", KINDS)
def test_the_reply_follows_its_grammar_and_ends_with_it(engine: Stepping, name: str) -> None:
    answer = engine.answer("the quick", **KINDS[name])
    assert is_right(name, answer.text), answer.text
    assert answer.finish_reason == "stop"
    assert 1 not in answer.token_ids  # nothing but the end could follow, so that it need not be drawn


def test_constrained_and_free_rows_are_the_same_alone_and_in_a_crowd(engine: Stepping) -> None:
    requests = [{"payload": "the quick", **kind} for kind in KINDS.values()] + [{"payload": "a", **RANDOM, "seed": 1}]
    alone, crowd = engine.alone(requests), engine.crowd(requests)
    assert [answer.token_ids for answer in crowd] == [answer.token_ids for answer in alone]


@pytest.mark.parametrize("name", ["greedy", "seeded", "choice"])
def test_resumed_at_every_token_it_equals_the_undisturbed(engine: Stepping, name: str) -> None:
    request = {"payload": "the quick", **KINDS[name]}
    whole = engine.answer(**request)
    for tokens in range(len(whole.token_ids) + 1):
        ids, text = whole.token_ids[:tokens], "".join(whole.texts[:tokens])
        rest = engine.answer(**request, resume=Resume(ids, len(text)))
        assert (ids + rest.token_ids, text + rest.text) == (whole.token_ids, whole.text), tokens
        assert (rest.finish_reason, rest.counts) == (whole.finish_reason, whole.counts)


def test_cut_short_it_is_the_beginning_of_what_it_would_have_been(engine: Stepping) -> None:
    whole = engine.answer("the quick", **KINDS["greedy"])
    cut = engine.answer("the quick", **{**KINDS["greedy"], "max_tokens": 9})
    assert cut.finish_reason == "length"
    assert cut.token_ids == whole.token_ids[:9]
    assert whole.text.startswith(cut.text)


@pytest.mark.parametrize("more", [{"min_tokens": 60}, {"ignore_eos": True}, {"min_tokens": 60, "ignore_eos": True}])
def test_a_grammar_that_is_complete_ends_the_reply_whatever_else_is_asked(
    engine: Stepping, more: dict[str, Any]
) -> None:
    for name in ("choice", "regex", "greedy"):
        answer = engine.answer("the quick", **{**KINDS[name], **more})
        assert answer.finish_reason == "stop"
        assert is_right(name, answer.text)


def test_a_grammar_that_may_end_does_so_only_after_min_tokens(engine: Stepping) -> None:
    request: dict[str, Any] = {"structured": Structured("regex", "[a-z]*"), "max_tokens": 40, "logit_bias": {1: 100.0}}
    assert engine.answer("the quick", **request).token_ids == [1]
    answer = engine.answer("the quick", **request, min_tokens=7)
    assert (len(answer.token_ids), answer.token_ids[-1], answer.finish_reason) == (8, 1, "stop")
    endless = engine.answer("the quick", **request, ignore_eos=True)
    assert (endless.finish_reason, len(endless.token_ids)) == ("length", 40)


def test_an_empty_text_may_be_all_that_is_allowed(engine: Stepping) -> None:
    answer = engine.answer("the quick", structured=Structured("regex", ""), max_tokens=5, ignore_eos=True)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", [1], "stop")


def test_a_bias_cannot_break_the_grammar(engine: Stepping) -> None:
    wrong = {token_id: 100.0 for token_id in range(2, 60)}
    assert is_right("regex", engine.answer("the quick", **KINDS["regex"], logit_bias=wrong).text)


def test_a_bad_grammar_is_refused_and_its_neighbour_goes_on(engine: Stepping) -> None:
    expected = engine.answer("the quick", **KINDS["seeded"])
    good = engine.submit("the quick", **KINDS["seeded"])
    engine.step(3)
    with pytest.raises(InvalidRequest, match="unclosed group"):
        engine.submit("the quick", structured=Structured("regex", "(a"))
    engine.finish()
    assert engine.answers[good].text == expected.text


def test_a_grammar_that_grows_too_complex_fails_alone(engine: Stepping) -> None:
    expected = engine.answer("the quick", **KINDS["seeded"])
    good = engine.submit("the quick", **KINDS["seeded"])
    bad = engine.submit("the quick", structured=Structured("grammar", 'start: "x" start'), max_tokens=30)
    engine.finish()
    assert engine.answers[good].text == expected.text
    error = engine.answers[bad].error
    assert isinstance(error, InvalidRequest)
    assert not error.retryable
    assert "\n" not in error.message


def test_a_resume_with_tokens_that_the_grammar_forbids_is_refused(engine: Stepping) -> None:
    with pytest.raises(InvalidRequest, match="cannot follow the grammar"):
        engine.submit("the quick", **KINDS["choice"], resume=Resume([90, 91, 92], 0))


def test_a_grammar_is_compiled_once(engine: Stepping) -> None:
    known = engine.generation._frontend.grammars._compiled
    answers: list[Answer] = [engine.answer("the quick", **KINDS["regex"]) for _ in range(3)]
    assert len({answer.text for answer in answers}) == 1
    before = len(known)
    engine.answer("hello", **KINDS["regex"])
    assert len(known) == before
