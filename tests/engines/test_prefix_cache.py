"""What others computed of a prompt is not computed again, and no answer changes for it."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from shared.errors import EngineFailed
from tests.engines.driving import Answer, Reference, Stepping
from worker.engines.budget import StepBudget
from worker.engines.kv_cache import KeyValueCache


def some_ids(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(2, 384), k=length)


def cached(answer: Answer) -> int:
    assert answer.usage is not None
    return answer.usage.cached_tokens


@pytest.fixture
def small_cache(engine: Stepping) -> Iterator[None]:
    """Two rows of the longest, and a block."""
    generation = engine.generation
    tokens = generation._cache.space.tokens
    generation._cache = generation._model.hold(2 * 256 + 64)
    yield
    generation._cache = generation._model.hold(tokens)


@pytest.mark.parametrize("ended_by", ["length", "abort"])
def test_the_next_turn_of_a_conversation_computes_what_is_new(
    engine: Stepping, reference: Reference, ended_by: str
) -> None:
    first = some_ids(40, 1)
    if ended_by == "length":
        reply = engine.answer(first, max_tokens=20).token_ids
    else:
        request_id = engine.submit(first, max_tokens=100)
        engine.step(20)
        reply = engine.answers[request_id].token_ids
        engine.abort(request_id)
    second = [*first, *reply, *some_ids(10, 2)]
    answer = engine.answer(second, max_tokens=20)
    assert answer.token_ids == reference.greedy(second, 20)
    assert cached(answer) == 40 + len(reply) - 1


def test_a_prompt_that_was_answered_computes_its_last_tokens(engine: Stepping, reference: Reference) -> None:
    prompt = some_ids(50, 3)
    assert [cached(engine.answer(prompt, max_tokens=tokens)) for tokens in (1, 9, 3)] == [0, 48, 48]  # whole blocks
    assert engine.answer(prompt, max_tokens=12).token_ids == reference.greedy(prompt, 12)


def test_a_shared_beginning_is_computed_once_by_those_who_come_together(
    engine: Stepping, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.generation, "budget", StepBudget(alone=16, beside=10))
    system = some_ids(70, 4)
    prompts = [[*system, *some_ids(length, length)] for length in (9, 25, 1, 40)]
    ids = [engine.submit(prompt, max_tokens=15) for prompt in prompts]
    engine.finish()
    for prompt, request_id in zip(prompts, ids, strict=True):
        assert engine.answers[request_id].token_ids == reference.greedy(prompt, 15)
    assert [cached(engine.answers[request_id]) for request_id in ids] == [0, 64, 64, 64]  # whole blocks


def test_choices_share_their_prompt_and_are_drawn_as_alone(engine: Stepping) -> None:
    choices: list[dict[str, Any]] = [
        {"payload": some_ids(60, 5), "max_tokens": 12, "temperature": 0.9, "seed": 7, "choice": choice}
        for choice in range(4)
    ]
    ids = [engine.submit(**choice) for choice in choices]
    engine.finish()
    together = [engine.answers[request_id] for request_id in ids]
    assert [cached(answer) for answer in together] == [0, 48, 48, 48]
    engine.forget()
    for choice, answer in zip(choices, together, strict=True):
        engine.forget()
        assert engine.answer(**choice).token_ids == answer.token_ids


def test_fewer_tokens_than_a_block_are_computed_again(engine: Stepping) -> None:
    system = some_ids(15, 6)
    assert [cached(engine.answer([*system, last, 9, 9], max_tokens=2)) for last in (5, 6)] == [0, 0]


def test_a_prompt_whose_own_probabilities_are_asked_for_is_computed_whole(engine: Stepping) -> None:
    prompt = some_ids(50, 8)
    engine.answer(prompt, max_tokens=2)
    answer = engine.answer(prompt, max_tokens=2, echo=True, logprobs=1)
    assert (cached(answer), len(answer.prompt_logprobs)) == (0, 50)
    assert cached(engine.answer(prompt, max_tokens=2)) == 48


def test_after_a_step_that_failed_nothing_is_kept(engine: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = some_ids(50, 9)
    engine.answer(prompt, max_tokens=2)
    engine.submit(prompt, max_tokens=2)
    with monkeypatch.context() as patched:
        patched.setattr(KeyValueCache, "_copy", _fail)
        with pytest.raises(EngineFailed):
            engine.step()
    engine.forget()
    assert cached(engine.answer(prompt, max_tokens=2)) == 0


def _fail(*_: object) -> None:
    raise EngineFailed("memory is broken")


@pytest.mark.usefixtures("small_cache")
def test_what_was_of_no_use_for_longest_makes_room(engine: Stepping, reference: Reference) -> None:
    prompts = [some_ids(100, seed) for seed in (10, 11, 12, 13)]
    for prompt in (*prompts[:3], prompts[0]):
        engine.answer(prompt, max_tokens=4)
    answer = engine.answer(prompts[3], max_tokens=4)
    assert answer.token_ids == reference.greedy(prompts[3], 4)
    assert [cached(engine.answer(prompts[place], max_tokens=4)) for place in (0, 1)] == [96, 0]


@pytest.mark.usefixtures("small_cache")
def test_one_row_may_have_all_that_there_is(engine: Stepping, reference: Reference) -> None:
    for seed in range(5):
        engine.answer(some_ids(60, seed), max_tokens=4)
    prompt = some_ids(240, 14)
    assert engine.answer(prompt, max_tokens=16).token_ids == reference.greedy(prompt, 16)


@pytest.mark.usefixtures("small_cache")
def test_whoever_comes_and_goes_when_memory_is_short_each_is_answered_as_alone(
    engine: Stepping, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.generation, "budget", StepBudget(alone=40, beside=24))
    chance, seen, expected, shared = random.Random(15), [some_ids(80, 15)], {}, 0
    for number in range(80):
        base = chance.choice(seen)
        prompt = [*base[: chance.randint(0, len(base))], *some_ids(chance.randint(1, 40), number)][:200]
        tokens = chance.randint(1, 30)
        request_id = engine.submit(prompt, max_tokens=tokens)
        expected[request_id] = (prompt, tokens)
        engine.step(chance.randint(0, 6))
        if number % 4 == 0:
            victim = chance.choice([one for one in expected if not engine.answers[one].ended])
            engine.abort(victim)
            del expected[victim]
        seen.append(prompt)
    engine.finish()
    for request_id, (prompt, tokens) in expected.items():
        assert engine.answers[request_id].token_ids == reference.greedy(prompt, tokens), request_id
        shared += cached(engine.answers[request_id])
    assert shared > 300
