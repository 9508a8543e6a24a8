"""A name for several models: each gets its share, and who comes back finds the same one."""

from collections import Counter

import pytest

from gateway.aliases import Aliases
from gateway.settings import GatewaySettings
from shared.errors import StartupError

SHARES = {"qwen": 90.0, "llama": 10.0}
USERS = [f"user-{number}" for number in range(4000)]


def everywhere(_: str) -> bool:
    return True


def test_another_name_is_what_it_is() -> None:
    assert Aliases({"chat": SHARES}).choose("qwen", "anna", everywhere) == "qwen"


def test_each_model_gets_its_share_of_the_users_and_of_the_requests_without_one() -> None:
    aliases = Aliases({"chat": SHARES})
    for users in (USERS, [None] * len(USERS)):
        chosen = Counter(aliases.choose("chat", user, everywhere) for user in users)
        assert 0.07 < chosen["llama"] / len(users) < 0.13


def test_a_user_stays_where_they_were() -> None:
    at = {user: Aliases({"chat": SHARES}).choose("chat", user, everywhere) for user in USERS}
    assert at == {
        user: Aliases({"chat": dict(reversed(SHARES.items()))}).choose("chat", user, everywhere) for user in at
    }


def test_of_a_change_of_weights_only_those_notice_whom_it_moves() -> None:
    before, after = Aliases({"chat": SHARES}), Aliases({"chat": {"qwen": 70, "llama": 30}})
    moved = [
        (old, new)
        for user in USERS
        if (old := before.choose("chat", user, everywhere)) != (new := after.choose("chat", user, everywhere))
    ]
    assert set(moved) == {("qwen", "llama")}
    assert 0.16 < len(moved) / len(USERS) < 0.24


def test_users_of_a_model_that_is_gone_are_taken_over_and_come_back() -> None:
    aliases = Aliases({"chat": SHARES})
    assert {aliases.choose("chat", user, lambda model: model == "llama") for user in USERS} == {"llama"}
    assert {aliases.choose("chat", user, lambda model: False) for user in USERS} == {"qwen", "llama"}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ('{"chat": {}}', "at least 1 item"),
        ('{"chat": {"qwen": 0}}', "greater than 0"),
        ('{"chat": {"qwen": "much"}}', "valid number"),
        ('{"a": {"b": 1}, "b": {"c": 1}}', "'a' has a share for 'b', which is an alias itself"),
        ("chat", "aliases"),
    ],
)
def test_what_makes_no_sense_is_refused(given: str, why: str) -> None:
    with pytest.raises(StartupError, match=why):
        GatewaySettings.read("gateway", ["--aliases", given])


def test_an_alias_is_given_as_json() -> None:
    given = '{"chat": {"org/qwen": 90, "base:adapter": 10}}'
    assert GatewaySettings.read("gateway", ["--aliases", given]).aliases == {
        "chat": {"org/qwen": 90.0, "base:adapter": 10.0}
    }
