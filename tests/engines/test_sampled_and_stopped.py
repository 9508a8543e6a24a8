"""Seeds, penalties, stop strings and split characters, alone and in a crowd."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidRequest
from tests.engines.driving import Answer, Reference, Stepping

RANDOM: dict[str, Any] = {"temperature": 1.5, "max_tokens": 30}
REQUESTS: list[dict[str, Any]] = [
    {"payload": "the quick", **RANDOM, "seed": 1},
    {"payload": "the quick", **RANDOM, "seed": 2, "top_p": 0.8},
    {"payload": "hello world", **RANDOM, "seed": 2, "top_k": 7},
    {"payload": "hello", **RANDOM, "seed": -5, "min_p": 0.05},
    {"payload": "Zwölf Boxkämpfer", **RANDOM, "seed": 2**70 + 1, "repetition_penalty": 1.4},
    {"payload": "stop", **RANDOM, "seed": 9, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"payload": "0 1 2 3", "max_tokens": 25},
    {"payload": "a", **RANDOM, "seed": 1, "choice": 3},
    {"payload": "a", **RANDOM, "seed": 1, "logit_bias": {70: 4.0, 80: -3.0}, "top_p": 0.9},
    {"payload": "a", **RANDOM, "seed": 8, "min_tokens": 12, "stop_token_ids": (70, 71), "logprobs": 2},
]


def test_a_seeded_answer_is_the_same_alone_and_in_a_crowd(engine: Stepping) -> None:
    for expected, answer in zip(engine.alone(REQUESTS), engine.crowd(REQUESTS), strict=True):
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text


def test_other_seeds_and_other_choices_give_other_answers(engine: Stepping) -> None:
    request = {"payload": "the quick", "temperature": 1.5, "max_tokens": 12}
    answers = [engine.answer(**request, seed=seed, choice=choice) for seed in (1, 2) for choice in (0, 1)]
    assert len({tuple(answer.token_ids) for answer in answers}) == 4


def test_a_repetition_penalty_gives_the_tokens_of_generate(engine: Stepping, reference: Reference) -> None:
    got = engine.answer("the quick", repetition_penalty=1.8, max_tokens=20).token_ids
    assert got == reference.greedy("the quick", 20, repetition_penalty=1.8)
    assert got != reference.greedy("the quick", 20)


def test_a_frequency_penalty_keeps_tokens_from_coming_again(engine: Stepping) -> None:
    # Greedy rows of a random model fall into a loop; a heavy penalty on what came forbids that.
    ids = engine.answer("the quick", frequency_penalty=1000.0, max_tokens=60).token_ids
    assert len(set(ids)) == len(ids)


def test_a_bias_bans_and_forces_also_in_a_greedy_row(engine: Stepping) -> None:
    plain = engine.answer("the quick", max_tokens=20)
    banned = engine.answer("the quick", max_tokens=20, logit_bias=dict.fromkeys(plain.token_ids, -100.0))
    assert not set(banned.token_ids) & set(plain.token_ids)
    assert engine.answer("the quick", max_tokens=5, logit_bias={77: 100.0}).token_ids == [77] * 5
    drawn = engine.answer("the quick", max_tokens=5, logit_bias={77: 100.0}, temperature=2.0, top_k=3)
    assert drawn.token_ids == [77] * 5


def test_every_bias_at_once_changes_nothing(engine: Stepping) -> None:
    plain = engine.answer("the quick", max_tokens=9).token_ids
    for bias in (-100.0, 100.0):
        assert engine.answer("the quick", max_tokens=9, logit_bias=dict.fromkeys(range(384), bias)).token_ids == plain


@pytest.mark.parametrize("param", ["logit_bias", "stop_token_ids"])
def test_ids_beyond_the_vocabulary_are_refused_by_name(engine: Stepping, param: str) -> None:
    with pytest.raises(InvalidRequest, match="384 is not a token id") as refused:
        engine.submit("the quick", **{param: {384: 1.0} if param == "logit_bias" else (5, 384)})
    assert refused.value.param == param


def test_a_stop_token_ends_the_answer_and_is_counted_but_not_shown(engine: Stepping) -> None:
    whole = engine.answer("the quick", max_tokens=20)
    stop = whole.token_ids[7]
    shown = whole.token_ids[: whole.token_ids.index(stop)]
    answer = engine.answer("the quick", max_tokens=20, stop_token_ids=(stop,))
    assert (answer.token_ids, answer.finish_reason, answer.stop) == ([*shown, stop], "stop", None)
    assert answer.text == engine.answer("the quick", max_tokens=len(shown)).text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(shown) + 1


def test_nothing_ends_an_answer_before_its_min_tokens(engine: Stepping) -> None:
    eager: dict[str, Any] = {"max_tokens": 20, "logit_bias": {1: 100.0, 60: 50.0}, "stop_token_ids": (60,)}
    assert engine.answer("the quick", **eager).token_ids == [1]
    for draw in ({}, {"temperature": 1.0, "seed": 4}):
        answer = engine.answer("the quick", **eager, **draw, min_tokens=6)
        assert (len(answer.token_ids), answer.token_ids[-1]) == (7, 1)
        assert not {1, 60} & set(answer.token_ids[:6])


def test_with_ignore_eos_the_end_token_is_one_like_others(engine: Stepping) -> None:
    answer = engine.answer("the quick", max_tokens=6, ignore_eos=True, logit_bias={1: 100.0}, logprobs=0)
    assert (answer.token_ids, answer.text, answer.finish_reason) == ([1] * 6, "", "length")
    assert [one.token for one in answer.logprobs] == ["<|end|>"] * 6


def test_the_stop_string_that_was_met_is_told(engine: Stepping) -> None:
    stop = spelled(engine).text[5:9]
    assert engine.answer("the quick", max_tokens=40, stop=("\x00", stop)).stop == stop
    assert engine.answer("the quick", max_tokens=40, stop=("\x00",)).stop is None


def spelled(engine: Stepping) -> Answer:
    """A long answer of readable text."""
    return engine.answer("the quick", max_tokens=40)


def test_a_stop_string_over_several_tokens_ends_the_answer_and_never_leaks(engine: Stepping) -> None:
    whole = spelled(engine)
    for start in range(0, len(whole.text) - 6):
        stop = whole.text[start : start + 6]
        answer = engine.answer("the quick", max_tokens=40, stop=(stop,))
        cut = whole.text.index(stop)
        assert answer.finish_reason == "stop"
        assert answer.text == whole.text[:cut]
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        seen = ""
        for text in answer.texts:
            seen += text
            assert whole.text[:cut].startswith(seen)


def test_text_that_was_held_back_comes_at_the_end(engine: Stepping) -> None:
    whole = spelled(engine)
    answer = engine.answer("the quick", max_tokens=40, stop=(whole.text[-5:] + "?",))
    assert (answer.text, answer.finish_reason) == (whole.text, "length")


def test_split_characters_come_out_whole(engine: Stepping, reference: Reference) -> None:
    """A random model speaks bytes: most of what it says is half characters."""
    answer = engine.answer("über", temperature=3.0, seed=3, max_tokens=120)
    whole = reference.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    assert whole.startswith(answer.text)
    assert set(whole[len(answer.text) :]) <= {"\ufffd"}
    assert not answer.texts[-1].endswith("\ufffd")


@pytest.mark.parametrize("request_", REQUESTS[:3])
def test_one_request_that_fails_does_not_hurt_its_neighbour(
    engine: Stepping, monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any]
) -> None:
    expected = engine.answer(**request_)
    neighbour = engine.submit(**request_)
    failing = engine.submit("hello", max_tokens=30)
    sequence = engine.generation.waiting[-1]
    monkeypatch.setattr(sequence, "output", lambda *_: 1 / 0)
    engine.finish()
    assert engine.answers[neighbour].token_ids == expected.token_ids
    error = engine.answers[failing].error
    assert error is not None
    assert error.retryable


def test_rows_of_the_penalized_are_given_back(load: Callable[..., Stepping], llama: Path) -> None:
    """More requests than rows: some end, some are aborted, some make room for others and come back."""
    engine = load(llama, slots=3, dtype="float32")
    request = {"max_tokens": 40, "frequency_penalty": 0.3, "repetition_penalty": 1.1}
    prompts = [[5] * length + [7] for length in (3, 60, 9, 30, 2, 50, 4)]
    alone = [answer.token_ids for answer in engine.alone({"payload": prompt, **request} for prompt in prompts)]
    engine.generation._cache = engine.generation._model.hold(200)
    for aborted in (None, 1, 4):
        engine.forget()
        names = [engine.submit(prompt, **request) for prompt in prompts]
        engine.step(5)
        if aborted is not None:
            engine.abort(names.pop(aborted))
        engine.finish()
        expected = [ids for place, ids in enumerate(alone) if place != aborted]
        assert [engine.answers[name].token_ids for name in names] == expected
    assert len(engine.generation._penalties._free) == 3
