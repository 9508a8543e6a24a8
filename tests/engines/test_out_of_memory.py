"""A step that finds no memory: fewer are computed at once, and none is lost but one that is too large alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shared.errors import EngineFailed
from tests.engines.driving import Reference, Stepping
from tests.engines.test_generation import PROMPTS, random_prompt

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def short_of_memory(engine: Stepping, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], bool]], list[int]]:
    """Steps that are too much, by what is computed of each row. The list grows by the sequences of each that was."""

    def short(is_too_much: Callable[[Any], bool]) -> list[int]:
        forward, failed = engine.generation._model.forward, []

        def tried(work: Any, *rest: Any) -> torch.Tensor:
            logits: torch.Tensor = forward(work, *rest)  # so that keys and values are written, as far as it came
            if is_too_much(work):
                failed.append(len(work))
                raise torch.OutOfMemoryError(NO_MEMORY)
            return logits

        monkeypatch.setattr(engine.generation._model, "forward", tried)
        return failed

    return short


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_crowd_is_answered_as_with_enough_of_it(
    engine: Stepping, reference: Reference, short_of_memory: Any, most: int
) -> None:
    failed = short_of_memory(lambda work: len(work) > most)
    for prompt, answer in zip(
        PROMPTS, engine.crowd({"payload": prompt, "max_tokens": 20} for prompt in PROMPTS), strict=True
    ):
        assert answer.token_ids == reference.greedy(prompt, 20)
    assert failed
    assert engine.generation._at_once > 1


def test_what_is_drawn_scored_and_counted_is_so_once(engine: Stepping, short_of_memory: Any) -> None:
    scored = {"payload": random_prompt(40, 1), "max_tokens": 12, "echo": True, "logprobs": 2}
    requests = [
        scored,
        {"payload": "the quick", "max_tokens": 25, "temperature": 0.9, "seed": 5},
        {"payload": "0", "max_tokens": 25, "frequency_penalty": 1.5, "repetition_penalty": 1.2},
        {**scored, "payload": random_prompt(90, 2)},
        {"payload": "a", "max_tokens": 25, "logprobs": 1},
    ]
    alone = engine.alone(requests)
    failed = short_of_memory(lambda work: len(work) > 2)
    for answer, expected in zip(engine.crowd(requests), alone, strict=True):
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text
        assert answer.counts == expected.counts
        for one, other in ((answer.logprobs, expected.logprobs), (answer.prompt_logprobs, expected.prompt_logprobs)):
            assert [token.token for token in one] == [token.token for token in other]
            assert [token.logprob for token in one] == pytest.approx([token.logprob for token in other], abs=1e-4)
    assert failed


def test_one_that_is_too_large_alone_fails_alone(engine: Stepping, reference: Reference, short_of_memory: Any) -> None:
    short_of_memory(lambda work: any(len(tokens) > 40 for _, tokens in work))
    small = [engine.submit(prompt, max_tokens=30) for prompt in PROMPTS[:3]]
    engine.step(4)
    large = engine.submit(random_prompt(100, 3), max_tokens=5)
    later = engine.submit("a", max_tokens=5)
    engine.finish()
    error = engine.answers[large].error
    assert isinstance(error, EngineFailed)
    assert NO_MEMORY in str(error)
    for prompt, request_id in zip([*PROMPTS[:3], "a"], [*small, later], strict=True):
        answer = engine.answers[request_id]
        assert answer.token_ids == reference.greedy(prompt, len(answer.token_ids))
        assert answer.finish_reason == "length"
    assert engine.generation.cache().usage == 0


def test_memory_that_is_missing_when_tokens_are_drawn(
    engine: Stepping, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.engines import generation

    draw, failed = generation.sample, []

    def sample(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(logits) > 2:
            failed.append(len(logits))
            raise torch.OutOfMemoryError(NO_MEMORY)
        return draw(logits, *rest)

    monkeypatch.setattr(generation, "sample", sample)
    answers = engine.crowd({"payload": prompt, "max_tokens": 20} for prompt in PROMPTS)
    assert failed
    assert [answer.token_ids for answer in answers] == [reference.greedy(prompt, 20) for prompt in PROMPTS]
