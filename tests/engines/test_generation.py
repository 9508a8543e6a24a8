"""Batched generation gives what transformers' own `generate` gives to each prompt alone."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import ContextLengthExceeded, InvalidRequest, UnsupportedModel
from tests.engines.driving import Reference, SaveModel, Stepping
from worker.engines.budget import StepBudget

PROMPTS = [
    "the quick",
    "Zwölf Boxkämpfer jagen Viktor quer",
    "0",
    "hello world stop token stream " * 4,
    "a",
    "über den",
]


def random_prompt(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(2, 384), k=length)


@pytest.fixture
def small_steps(engine: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are computed in many chunks."""
    monkeypatch.setattr(engine.generation, "budget", StepBudget(alone=12, beside=8))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_one_prompt_is_continued_as_by_generate(engine: Stepping, reference: Reference, prompt: str) -> None:
    assert engine.answer(prompt, max_tokens=20).token_ids == reference.greedy(prompt, 20)


def test_prompts_of_mixed_lengths_at_once_are_continued_as_alone(engine: Stepping, reference: Reference) -> None:
    ids = {engine.submit(prompt, max_tokens=15 + place): (prompt, 15 + place) for place, prompt in enumerate(PROMPTS)}
    engine.finish()
    for request_id, (prompt, tokens) in ids.items():
        assert engine.answers[request_id].token_ids == reference.greedy(prompt, tokens)


@pytest.mark.usefixtures("small_steps")
def test_staggered_arrivals_aborts_and_reused_slots_leave_each_answer_as_it_is(
    engine: Stepping, reference: Reference
) -> None:
    chance = random.Random(3)
    expected = {}
    for number in range(24):
        prompt, tokens = random_prompt(chance.choice([1, 3, 11, 40, 90]), number), chance.randint(1, 25)
        request_id = engine.submit(prompt, max_tokens=tokens)
        expected[request_id] = (prompt, tokens)
        engine.step(chance.randint(0, 4))
        if number % 3 == 0:
            victim = chance.choice([one for one in expected if not engine.answers[one].ended])
            engine.abort(victim)
            del expected[victim]
    engine.finish()
    for request_id, (prompt, tokens) in expected.items():
        assert engine.answers[request_id].token_ids == reference.greedy(prompt, tokens), request_id


@pytest.mark.usefixtures("small_steps")
def test_a_long_prompt_does_not_hold_up_who_is_being_answered(engine: Stepping) -> None:
    running = engine.submit("the quick", max_tokens=60)
    engine.step(2)
    engine.submit(random_prompt(150, 1), max_tokens=3)
    before = len(engine.answers[running].token_ids)
    engine.step(8)
    assert len(engine.answers[running].token_ids) == before + 8


def test_no_more_than_the_slots_run_and_the_others_follow_in_order(engine: Stepping) -> None:
    ids = [engine.submit("the quick", max_tokens=5) for _ in range(6)]
    engine.step()
    assert [bool(engine.answers[request_id].token_ids) for request_id in ids] == [True] * 4 + [False] * 2
    engine.finish()
    assert all(engine.answers[request_id].finish_reason == "length" for request_id in ids)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.usefixtures("small_steps")
def test_an_abort_frees_everything_wherever_the_request_is(engine: Stepping, steps: int) -> None:
    request_id = engine.submit(random_prompt(20, 2), max_tokens=50)
    engine.step(steps)
    engine.abort(request_id)
    assert not engine.stepper.has_work()
    engine.step()
    assert engine.answers == {}


def test_abort_all_names_what_it_forgot(engine: Stepping) -> None:
    ids = [engine.submit("the", max_tokens=5) for _ in range(6)]
    engine.step()
    assert sorted(engine.stepper.abort_all()) == sorted(ids)
    assert not engine.stepper.has_work()


def test_every_token_arrives_in_the_step_that_made_it(engine: Stepping) -> None:
    answer = engine.answer("the quick", max_tokens=12)
    assert len(answer.texts) == len(answer.token_ids) == 12


def test_usage_counts_prompt_and_completion(engine: Stepping) -> None:
    usage = engine.answer(random_prompt(17, 5), max_tokens=4).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (17, 4)


def test_an_end_token_ends_the_answer_and_is_counted_but_not_shown(
    engine: Stepping, save_model: SaveModel, load: Callable[..., Stepping]
) -> None:
    whole = engine.answer("the quick", max_tokens=20).token_ids
    end = whole[7]
    ending = load(save_model("llama", eos_token_id=[1, end]))
    answer = ending.answer("the quick", max_tokens=20)
    shown = whole[: whole.index(end)]
    assert answer.finish_reason == "stop"
    assert answer.token_ids == [*shown, end]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(shown) + 1
    assert answer.text == engine.answer("the quick", max_tokens=len(shown)).text


def test_without_max_tokens_the_context_is_filled(engine: Stepping) -> None:
    answer = engine.answer(random_prompt(250, 6), max_tokens=None)
    assert answer.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 256


def test_max_tokens_beyond_the_context_is_cut_to_fit(engine: Stepping) -> None:
    assert len(engine.answer(random_prompt(250, 6), max_tokens=100_000).token_ids) == 6


def test_no_tokens_asked_for_none_made(engine: Stepping) -> None:
    answer = engine.answer("the quick", max_tokens=0)
    assert (answer.token_ids, answer.text, answer.finish_reason) == ([], "", "length")


@pytest.mark.parametrize("prompt", [random_prompt(256, 0), random_prompt(300, 0), "x" * 100_000])
def test_a_prompt_that_leaves_no_room_is_refused_in_openai_s_words(engine: Stepping, prompt: str | list[int]) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"maximum context length is 256 tokens\. However, "):
        engine.submit(prompt)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"prompt": [5, 384]}, "384 is not a token id"),
        ({"prompt": [-1]}, "-1 is not a token id"),
        ({"prompt": [1.5]}, "1.5 is not a token id"),
        ({"prompt": 7}, "must be a string"),
        ({"prompt": "half \ud83d"}, "not valid Unicode"),
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, "not valid Unicode"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "unknown role critic"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said(engine: Stepping, payload: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        engine.submit(payload)


def test_embeddings_are_refused_by_a_generation_model(engine: Stepping) -> None:
    with pytest.raises(UnsupportedModel, match="does not support embeddings"):
        engine.submit({"inputs": ["text"]})


def test_an_empty_prompt_starts_from_the_first_token(engine: Stepping, reference: Reference) -> None:
    assert engine.answer("", max_tokens=6).token_ids == reference.greedy([0], 6)


def test_chat_uses_the_model_s_template(engine: Stepping, reference: Reference) -> None:
    messages = [{"role": "system", "content": "stop"}, {"role": "user", "content": "hello"}]
    text = "<|begin|>system\nstop<|end|>\n<|begin|>user\nhello<|end|>\n<|begin|>assistant\n"
    assert engine.answer({"messages": messages}, max_tokens=8).token_ids == reference.greedy(text, 8)


def test_a_developer_is_the_system_to_a_template_that_knows_none(engine: Stepping) -> None:
    answers = [
        engine.answer(
            {"messages": [{"role": role, "content": "stop"}, {"role": "user", "content": None}]}, max_tokens=8
        )
        for role in ("system", "developer")
    ]
    assert answers[0].token_ids == answers[1].token_ids


@pytest.mark.parametrize("length", [1, 33])
def test_a_scored_prompt_whose_last_part_is_one_token_is_scored(
    engine: Stepping, reference: Reference, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr("worker.engines.generation.SCORED", 32)
    neighbour = engine.submit("the quick", max_tokens=60)
    prompt = random_prompt(length, 3)
    scored = engine.submit(prompt, max_tokens=0, echo=True, logprobs=1)
    longer = engine.submit(prompt, max_tokens=40, echo=True, logprobs=1)
    engine.finish()
    assert engine.answers[scored].token_ids == []
    assert [len(engine.answers[one].prompt_logprobs) for one in (scored, longer)] == [length, length]
    assert engine.answers[longer].token_ids == reference.greedy(prompt, 40)
    assert engine.answers[neighbour].token_ids == reference.greedy("the quick", 60)


def test_a_prompt_that_fills_the_context_of_a_single_slot_is_answered(
    llama: Path, load: Callable[..., Stepping]
) -> None:
    engine = load(llama, slots=1, max_model_len=128)
    answer = engine.answer(random_prompt(128, 4), max_tokens=0, echo=True, logprobs=1)
    assert (answer.finish_reason, len(answer.prompt_logprobs)) == ("length", 128)


def test_what_a_step_had_made_before_it_failed_is_handed_over(
    engine: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = engine.submit("the quick", max_tokens=0)
    other = engine.submit("the", max_tokens=5)
    with monkeypatch.context() as patched:
        patched.setattr(engine.generation._model, "forward", None)
        with pytest.raises(TypeError):
            engine.step()
    assert engine.stepper.abort_all() == [other]
    assert engine.stepper.has_work()
    engine.step()
    assert engine.answers[ended].finish_reason == "length"


def test_models_of_one_process_step_at_once_and_do_not_notice(
    save_model: SaveModel, load: Callable[..., Stepping]
) -> None:
    """Each has a thread of its own."""
    paths = [save_model("llama"), save_model("qwen3")]
    engines, prompts = [load(path) for path in paths], [random_prompt(length, length) for length in (3, 40, 90)]
    told: list[list[list[int]]] = [[], []]

    def drive(place: int) -> None:
        for _ in range(5):
            answers = engines[place].crowd({"payload": prompt, "max_tokens": 20} for prompt in prompts)
            told[place].append([token for answer in answers for token in answer.token_ids])

    threads = [threading.Thread(target=drive, args=[place]) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for path, found in zip(paths, told, strict=True):
        reference = Reference(path)
        assert found == [[token for prompt in prompts for token in reference.greedy(prompt, 20)]] * 5
