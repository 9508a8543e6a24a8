"""What a model writes under a JSON schema is valid. A random one at a high temperature is the hardest client."""

import json
from typing import Any

import jsonschema
import pytest

from shared.grammar import check, constraint
from shared.messages import Structured
from tests.engines.driving import Answer, Stepping
from tests.engines.schemas import SCHEMAS

REPLIES: list[dict[str, Any]] = [
    {"temperature": 1.5, "seed": 1},
    {"temperature": 1.0, "seed": 2, "frequency_penalty": 2.0},
    {"temperature": 2.0, "seed": 3, "top_p": 0.9, "min_tokens": 4},
]


@pytest.fixture(scope="module")
def replies(loaded_llama: Stepping) -> dict[str, list[Answer]]:
    """All of them made in one crowd, four at a time."""
    loaded_llama.forget()
    ids = {
        name: [
            loaded_llama.submit("the quick", structured=Structured("json", schema), max_tokens=120, **how)
            for how in REPLIES
        ]
        for name, schema in SCHEMAS.items()
    }
    while loaded_llama.stepper.has_work():
        loaded_llama.step()
    return {name: [loaded_llama.answers[one] for one in some] for name, some in ids.items()}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_reply_that_ends_is_valid_and_one_that_is_cut_off_has_no_end(
    replies: dict[str, list[Answer]], name: str
) -> None:
    check(constraint(Structured("json", SCHEMAS[name])))
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    for answer in replies[name]:
        assert answer.error is None
        if answer.finish_reason == "stop":
            validator.validate(json.loads(answer.text))
        else:
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 120


def test_most_replies_end(replies: dict[str, list[Answer]]) -> None:
    reasons = [answer.finish_reason for some in replies.values() for answer in some]
    assert reasons.count("stop") > 0.7 * len(reasons)
