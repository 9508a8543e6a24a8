from typing import Any

import pytest

from cli.letters import SHOWN_CHARS, Letter, find, last_text, one_line
from cli.requeue import as_suspect
from shared.errors import StartupError
from shared.messages import Resume
from tests.integration.bus import make_job


def letter(entry: str, job: str | None) -> Letter:
    return Letter("echo", entry, make_job(job) if job else None, "worker_lost", ())


LETTERS = [letter("1-0", "r-0"), letter("2-0", "r-1"), letter("3-0", "q-0"), letter("4-0", None), letter("5-0", "q-0")]


@pytest.mark.parametrize(("id", "entry"), [("r-0", "1-0"), ("2-0", "2-0"), ("4-0", "4-0"), ("5-0", "5-0")])
def test_a_letter_is_found_by_job_or_entry(id: str, entry: str) -> None:
    assert find(id, LETTERS).entry == entry


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("r", "'r' may be any of r-0, r-1; name one"),
        ("q-0", "'q-0' may be any of 3-0, 5-0; name one"),
        ("x", "there is no dead letter 'x'; the last ones are: 3-0, 4-0, 5-0"),
    ],
)
def test_what_is_not_exactly_one_says_what_there_is(id: str, answer: str) -> None:
    with pytest.raises(StartupError) as refusal:
        find(id, LETTERS)
    assert str(refusal.value) == answer


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, "u"),
        ({"messages": []}, "{'messages': []}"),
        ({"prompt": [1, 2]}, "[1, 2]"),
        ({"inputs": ["a"]}, "a"),
        ({"inputs": ["a", "b", "c"]}, "a (and 2 more)"),
    ],
)
def test_a_list_shows_what_was_asked_last(payload: dict[str, Any], text: str) -> None:
    assert last_text(payload) == text


def test_a_prompt_in_a_list_is_one_line_that_moves_no_cursor() -> None:
    assert one_line("a\r\n\tb\x1b[2J\x07 \u202ec") == "a b [2J c"
    assert len(one_line("ab " * 1000)) == SHOWN_CHARS
    assert one_line("ab " * 1000).endswith("…")


def test_a_stored_responses_job_runs_again_without_its_log() -> None:
    again = as_suspect(make_job("resp_1-0", attempt=3, logged=7, resume=Resume([1], 2)), 60)
    assert (again.logged, again.resume, again.attempt) == (None, None, 0)
