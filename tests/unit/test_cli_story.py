import pytest

from cli.explain import requests_meant
from cli.story import Story, Surroundings, in_words
from shared.messages import Milestone, Trace

NOW = 1_800_000_000_000


def story(*milestones: tuple[int, str, dict[str, str | int]]) -> Story:
    """Milestones at ms before NOW."""
    told = [Milestone(NOW - ago, event, details) for ago, event, details in milestones]
    return Story(Trace(job="r-0", request="r", model="m", gateway="gw", index=0, jobs=1, deadline=NOW, milestones=told))


def around(*alive: str, served: bool = True) -> Surroundings:
    return Surroundings(NOW, frozenset(alive), {"m": 12}, frozenset(["m"] if served else []))


ACCEPTED = (20_000, "accepted", {})
QUEUED = (19_990, "queued", {})
CLAIMED = (19_800, "claimed", {"worker": "w1", "attempt": 0})
REISSUED = (15_000, "reissued", {"why": "worker_lost", "attempt": 1, "crashes": 1, "tokens": 7, "silent_ms": 2_000})
AGAIN = (14_500, "claimed", {"worker": "w2", "attempt": 1})
RESUMED = (14_300, "resumed", {})
FINISHED = (10_000, "finished", {"reason": "stop", "tokens": 9})
GONE = "its gateway is gone; nobody waits for it"


@pytest.mark.parametrize(
    ("milestones", "surroundings", "words"),
    [
        ((ACCEPTED, QUEUED, CLAIMED, FINISHED), around(), "finished after 10.0 s: 0.2 s waiting, 1 attempt"),
        (
            (ACCEPTED, QUEUED, CLAIMED, REISSUED, AGAIN, RESUMED, FINISHED),
            around(),
            "finished after 10.0 s: 0.7 s waiting, 2 attempts, longest pause 2.7 s",
        ),
        ((ACCEPTED, (0, "failed", {"code": "x"})), around(), "failed after 20.0 s: 20.0 s waiting, 1 attempt"),
        ((ACCEPTED, QUEUED, CLAIMED), around("gw", "w1"), "running on w1 for 19.8 s"),
        (
            (ACCEPTED, CLAIMED),
            around("gw"),
            "running on w1 for 19.8 s; that worker is gone, and its gateway gives the job to another one",
        ),
        ((ACCEPTED, CLAIMED), around("w1"), f"no end after 20.0 s: {GONE}"),
        ((ACCEPTED, QUEUED), around("gw"), "waiting for 20.0 s; jobs that wait for 'm': 12"),
        ((ACCEPTED, CLAIMED, REISSUED), around("gw"), "waiting for 15.0 s; jobs that wait for 'm': 12"),
        ((ACCEPTED, QUEUED), around("gw", served=False), "waiting for 20.0 s; nobody alive serves 'm'"),
        ((), around("gw"), "nothing is noted of it"),
    ],
)
def test_a_story_ends_with_what_it_comes_to(
    milestones: tuple[tuple[int, str, dict[str, str | int]], ...], surroundings: Surroundings, words: str
) -> None:
    assert story(*milestones).closing(surroundings) == words


@pytest.mark.parametrize(
    ("event", "details", "words"),
    [
        (
            "reissued",
            {"why": "released", "attempt": 1, "crashes": 0, "tokens": 1},
            "given to another worker: its worker left, 1 token so far",
        ),
        ("reissued", {"why": "new", "crashes": 2}, "given to another worker: new, 0 tokens so far, 2 crashes"),
        ("finished", {"reason": "length", "tokens": 5}, "finished (length, 5 tokens)"),
        ("paused", {"by": "somebody", "for": 3}, "paused (by somebody, for 3)"),
        ("paused", {}, "paused"),
    ],
)
def test_milestones_are_told_in_words(event: str, details: dict[str, str | int], words: str) -> None:
    assert in_words(Milestone(NOW, event, details)) == words


def test_the_gateways_own_request_id_may_be_of_each_kind() -> None:
    hex = "0123456789abcdef" * 2
    meant = requests_meant(f"req-{hex}", None)
    assert meant[:4] == [f"chatcmpl-{hex}", f"cmpl-{hex}", f"embd-{hex}", f"msg_{hex}"]
    assert requests_meant("mine", "cmpl-1") == ["cmpl-1", "mine"]
    assert requests_meant("req-mine", None) == ["req-mine"]
