"""A sequence that another worker continues ends as if nobody had been interrupted."""

from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.messages import Resume
from tests.engines.driving import Answer, Stepping

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"payload": "the quick", "max_tokens": 24},
    "seeded": {"payload": "hello world", "max_tokens": 24, "temperature": 1.3, "seed": 5, "top_p": 0.95},
    "another choice": {"payload": "hello", "max_tokens": 24, "temperature": 1.0, "seed": 5, "choice": 2},
    "penalties": {
        "payload": "0 1 2 3",
        "max_tokens": 24,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.8,
        "frequency_penalty": 0.4,
    },
    "half characters": {"payload": "über", "max_tokens": 24, "temperature": 3.0, "seed": 3},
    "chat": {"payload": {"messages": [{"role": "user", "content": "hello"}]}, "max_tokens": 24},
}


def resumed(engine: Stepping, request: dict[str, Any], whole: Answer, tokens: int) -> tuple[list[int], str, Answer]:
    """All ids and text of a request that broke off after `tokens` tokens and went on elsewhere."""
    ids, text = whole.token_ids[:tokens], "".join(whole.texts[:tokens])
    rest = engine.answer(**request, resume=Resume(ids, len(text)))
    return ids + rest.token_ids, text + rest.text, rest


@pytest.mark.parametrize("name", REQUESTS)
def test_resumed_at_every_token_it_equals_the_undisturbed(engine: Stepping, name: str) -> None:
    request = REQUESTS[name]
    whole = engine.answer(**request)
    for tokens in range(len(whole.token_ids) + 1):
        ids, text, rest = resumed(engine, request, whole, tokens)
        assert (ids, text) == (whole.token_ids, whole.text), tokens
        assert (rest.finish_reason, rest.counts) == (whole.finish_reason, whole.counts)


def test_a_stop_string_that_straddles_the_cut_is_found(engine: Stepping) -> None:
    plain = engine.answer("the quick", max_tokens=24)
    for start in (10, 15):
        request = {"payload": "the quick", "max_tokens": 24, "stop": (plain.text[start : start + 8],)}
        whole = engine.answer(**request)
        assert whole.finish_reason == "stop"
        for tokens in range(len(whole.token_ids) + 1):
            ids, text, rest = resumed(engine, request, whole, tokens)
            assert (ids, text, rest.finish_reason) == (whole.token_ids, whole.text, "stop"), tokens


def test_text_that_the_gateway_lacks_is_sent_again(engine: Stepping) -> None:
    whole = engine.answer("the quick", max_tokens=24)
    for sent in range(len("".join(whole.texts[:12]))):
        rest = engine.answer("the quick", max_tokens=24, resume=Resume(whole.token_ids[:12], sent))
        assert rest.text == whole.text[sent:]
        assert rest.token_ids == whole.token_ids[12:]


def test_what_was_at_its_end_is_answered_without_computing(engine: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.answer("the quick", max_tokens=24)
    stop = whole.text[5:12]
    stopped = engine.answer("the quick", max_tokens=24, stop=(stop,))
    model = engine.generation._model
    monkeypatch.setattr(model, "forward", lambda *_: pytest.fail("a step was computed"))
    full = engine.answer("the quick", max_tokens=24, resume=Resume(whole.token_ids, 3))
    assert (full.text, full.token_ids, full.finish_reason) == (whole.text[3:], [], "length")
    met = engine.answer("the quick", max_tokens=24, stop=(stop,), resume=Resume(stopped.token_ids, 0))
    assert (met.text, met.finish_reason, met.counts) == (stopped.text, "stop", stopped.counts)
    ended = engine.answer("the quick", max_tokens=24, resume=Resume([*whole.token_ids[:4], 1], 0))
    assert (ended.text, ended.finish_reason) == ("".join(whole.texts[:4]), "stop")


def test_what_is_resumed_in_a_crowd_equals_the_undisturbed(engine: Stepping) -> None:
    whole = {name: engine.answer(**request) for name, request in REQUESTS.items()}
    ids = {}
    for place, (name, request) in enumerate(REQUESTS.items()):
        cut = min(3 * place + 1, len(whole[name].token_ids) - 1)
        ids[name] = engine.submit(**request, resume=Resume(whole[name].token_ids[:cut], 0))
        engine.step(1)
    engine.finish()
    for name, request_id in ids.items():
        assert engine.answers[request_id].text == whole[name].text, name


def test_a_resume_with_ids_of_another_model_is_refused(engine: Stepping) -> None:
    with pytest.raises(InvalidRequest, match="9999 is not a token id"):
        engine.submit("the quick", resume=Resume([5, 9999], 0))
