"""lm-eval's model of servers like this one. What it measures goes to a file, for those who have the model itself."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " London"),
    ("Once upon a time", " there was a little girl named Lily"),
    ("", "hello"),
    ("1 2 3 4", " 5 6 7 8"),
    ("A", " very unlikely continuation über 北京"),
]
TEXT = "The quick brown fox jumps over the lazy dog."
UNTIL = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}


def asked(kind: str, *of_each: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(kind, {}, arguments, index, metadata=("task", index, 1)) for index, arguments in enumerate(of_each)
    ]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)


def harness(url: str, **options: Any) -> LocalCompletionsAPI:
    tokenizer = os.environ["CLIENTS_TOKENIZER"]
    return LocalCompletionsAPI(
        f"{url}/completions", "huggingface", model=CHAT, tokenizer=tokenizer, max_length=1024, **options
    )


def test_loglikelihoods_are_measured(url: str) -> None:
    """In every way there is to ask for them."""
    measured = {
        "one": harness(url).loglikelihood(asked("loglikelihood", *PAIRS)),
        "batches": harness(url, batch_size=4).loglikelihood(asked("loglikelihood", *PAIRS)),
        "crowd": harness(url, batch_size=2, num_concurrent=3).loglikelihood(asked("loglikelihood", *PAIRS)),
        "texts": harness(url, batch_size=4, tokenized_requests=False).loglikelihood(asked("loglikelihood", *PAIRS)),
    }
    rolling = harness(url).loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,)))
    told = {"pairs": PAIRS, "measured": measured, "text": TEXT, "rolling": rolling}
    Path(os.environ["CLIENTS_MEASURED"]).write_text(json.dumps(told))


def test_generations_end_where_they_should(url: str) -> None:
    for texts in (
        harness(url, batch_size=2).generate_until(asked("generate_until", *[("Q: 1+1?\nA:", UNTIL)] * 2)),
        LocalChatCompletion(f"{url}/chat/completions", model=CHAT).generate_until(
            asked("generate_until", (said('[{"role": "user", "content": "Say hello."}]'), UNTIL))
        ),
    ):
        assert all(text and "\n" not in text for text in texts)


def said(messages: str) -> Any:
    """A conversation, as the harness passes it on."""
    from lm_eval.models.api_models import JsonChatStr

    return JsonChatStr(messages)
