"""Log probabilities of completions and prompts equal those of a plain forward, alone and in a crowd."""

from typing import Any

import pytest
import torch

from shared.messages import Logprob, Resume, Structured, TokenLogprob
from tests.engines.driving import Answer, Reference, Stepping
from worker.engines.budget import StepBudget

PROMPT = "the quick brown fox über den 0 1 2 "
LONG = [2 + 37 * place % 380 for place in range(200)]


def close(got: float | None, expected: torch.Tensor) -> bool:
    return got is not None and abs(got - float(expected)) < 1e-4


def check_prompt(reference: Reference, ids: list[int], got: list[TokenLogprob], top: int) -> None:
    expected = reference.logprobs(ids)
    assert len(got) == len(ids)
    assert (got[0].logprob, got[0].top) == (None, [])
    for place, one in enumerate(got[1:]):
        assert close(one.logprob, expected[place, ids[place + 1]])
        assert len(one.top) == top
        best = expected[place].topk(top).values if top else []
        assert all(close(other.logprob, value) for other, value in zip(one.top, best, strict=True))


def test_a_completion_s_are_those_of_a_plain_forward(engine: Stepping, reference: Reference) -> None:
    answer = engine.answer(LONG[:50], max_tokens=20, logprobs=3)
    assert answer.usage is not None
    assert len(answer.logprobs) == answer.usage.completion_tokens == 20
    expected = reference.logprobs(LONG[:50] + answer.token_ids)[49:-1]
    for one, token_id, row in zip(answer.logprobs, answer.token_ids, expected, strict=True):
        assert close(one.logprob, row[token_id])
        assert all(close(other.logprob, value) for other, value in zip(one.top, row.topk(3).values, strict=True))
        assert (one.top[0].token, one.top[0].logprob) == (one.token, one.logprob)  # greedy


def test_they_are_the_model_s_own_whatever_changes_the_draw(engine: Stepping, reference: Reference) -> None:
    changes: dict[str, Any] = {
        "temperature": 2.0,
        "top_k": 50,
        "seed": 2,
        "logit_bias": {300: 5.0},
        "frequency_penalty": 1.0,
        "structured": Structured("regex", "[a-z ]{30}"),
    }
    answer = engine.answer(LONG[:20], max_tokens=12, logprobs=0, **changes)
    expected = reference.logprobs(LONG[:20] + answer.token_ids)[19:-1]
    assert all(
        close(one.logprob, row[token_id])
        for one, token_id, row in zip(answer.logprobs, answer.token_ids, expected, strict=True)
    )
    assert all(one.top == [] for one in answer.logprobs)


def test_who_asks_for_none_gets_none_beside_those_who_do(engine: Stepping) -> None:
    requests: list[dict[str, Any]] = [{}, {"logprobs": 0}, {"logprobs": 2}, {"logprobs": 5}]
    alone = [engine.answer("the quick", max_tokens=10, **request) for request in requests]
    crowd = [engine.submit("the quick", max_tokens=10, **request) for request in requests]
    engine.finish()
    for request, one, other in zip(requests, alone, (engine.answers[name] for name in crowd), strict=True):
        assert [len(token.top) for token in other.logprobs] == ([request["logprobs"]] * 10 if request else [])
        assert [token.token for token in one.logprobs] == [token.token for token in other.logprobs]
        assert one.token_ids == other.token_ids
    assert engine.answers[crowd[0]].logprobs == []


def test_the_tokens_joined_are_the_reply(engine: Stepping, reference: Reference) -> None:
    answer = engine.answer("über", temperature=2.0, seed=3, max_tokens=60, logprobs=1)
    raw = b"".join(bytes(one.bytes) if one.bytes is not None else one.token.encode() for one in answer.logprobs)
    special = ("<|begin|>", "<|end|>")
    shown = raw.decode(errors="replace")
    for text in special:
        shown = shown.replace(text, "")
    assert shown.startswith(answer.text)
    assert any("\ufffd" in one.token and one.bytes for one in answer.logprobs)  # a part of a character


def test_the_token_that_ends_a_reply_has_no_text(engine: Stepping) -> None:
    for more in ({"logit_bias": {1: 100.0}}, {"logit_bias": {70: 100.0}, "stop_token_ids": (70,)}):
        answer = engine.answer("the quick", max_tokens=9, logprobs=384, **more)
        (end,) = answer.logprobs
        assert (end.token, end.bytes, answer.text, answer.finish_reason) == ("", None, "", "stop")
        assert Logprob("", end.logprob or 0.0) in end.top
    assert {"<|begin|>", "<|end|>"} <= {other.token for other in end.top}


@pytest.mark.parametrize("top", [0, 4])
@pytest.mark.parametrize("max_tokens", [0, 5])
@pytest.mark.parametrize("budget", [None, 16])
def test_a_prompt_s_are_those_of_a_plain_forward(
    engine: Stepping,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
    top: int,
    max_tokens: int,
    budget: int | None,
) -> None:
    if budget:
        monkeypatch.setattr(engine.generation, "budget", StepBudget(alone=budget, beside=7))
    answer = engine.answer(LONG, max_tokens=max_tokens, logprobs=top, echo=True)
    check_prompt(reference, LONG, answer.prompt_logprobs, top)
    assert len(answer.logprobs) == len(answer.token_ids) == max_tokens
    assert answer.finish_reason == "length"
    assert len(answer.texts) == max(1, max_tokens)  # it comes with the first token, or with the end
    plain = engine.answer(LONG, max_tokens=max_tokens)
    assert answer.token_ids == plain.token_ids
    assert answer.text == reference.tokenizer.decode(LONG, skip_special_tokens=False) + plain.text


def test_prompts_are_scored_in_a_crowd_as_alone(
    engine: Stepping, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engines.generation.SCORED", 30)
    expected = engine.answer("hello", max_tokens=40).token_ids
    prompts = [LONG, LONG[5:90], LONG[:1], LONG[7:9]]
    beside = engine.submit("hello", max_tokens=40)
    crowd = []
    for place, prompt in enumerate(prompts):
        crowd.append(engine.submit(prompt, max_tokens=place, logprobs=2, echo=True))
        engine.step()
    engine.finish()
    assert engine.answers[beside].token_ids == expected
    for prompt, name in zip(prompts, crowd, strict=True):
        check_prompt(reference, prompt, engine.answers[name].prompt_logprobs, 2)


def test_an_echoed_text_is_what_was_sent(engine: Stepping) -> None:
    plain = engine.answer(PROMPT, max_tokens=6)
    for logprobs in (None, 1):
        answer = engine.answer(PROMPT, max_tokens=6, echo=True, logprobs=logprobs)
        assert answer.text == PROMPT + plain.text
        assert answer.counts == plain.counts
    nothing = engine.answer(PROMPT, max_tokens=0, echo=True)
    assert (nothing.text, nothing.token_ids, nothing.finish_reason) == (PROMPT, [], "length")
    assert engine.answer(PROMPT, max_tokens=3, echo=True, stop=("quick",)).text.startswith(PROMPT)


def test_a_prompt_that_fills_the_context_can_be_scored(engine: Stepping, reference: Reference) -> None:
    full = (LONG * 2)[:256]
    answer = engine.answer(full, max_tokens=0, echo=True, logprobs=1)
    check_prompt(reference, full, answer.prompt_logprobs, 1)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (256, 0)


def test_resumed_an_echo_goes_on_where_it_was(engine: Stepping) -> None:
    request: dict[str, Any] = {"payload": PROMPT, "max_tokens": 12, "echo": True, "logprobs": 2}
    whole = engine.answer(**request)
    assert len(whole.prompt_logprobs) == 10
    for tokens in range(len(whole.token_ids) + 1):
        got = Answer()
        got.text, got.logprobs = "".join(whole.texts[:tokens]), whole.logprobs[:tokens]
        rest = engine.answer(**request, resume=Resume(whole.token_ids[:tokens], len(got.text)))
        assert got.text + rest.text == whole.text
        assert [one.token for one in got.logprobs + rest.logprobs] == [one.token for one in whole.logprobs]
        assert len(rest.prompt_logprobs) == (0 if tokens else len(whole.prompt_logprobs))


def test_a_prompt_that_is_scored_can_be_aborted(engine: Stepping) -> None:
    name = engine.submit(LONG, max_tokens=3, echo=True, logprobs=1)
    engine.abort(name)
    assert not engine.stepper.has_work()
