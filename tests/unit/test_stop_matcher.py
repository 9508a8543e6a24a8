"""A stop string ends a text before its first character, however it arrives."""

import pytest

from worker.engines.text import StopMatcher


def through(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    """The text that comes out, to the end."""
    matcher = StopMatcher(stops)
    text = "".join(matcher.push(piece) for piece in pieces)
    return text + matcher.flush(), matcher.matched is not None


def cuts(text: str) -> list[list[str]]:
    """Every way to cut a text into pieces."""
    ways = []
    for bits in range(2 ** (len(text) - 1)):
        way, start = [], 0
        for place in range(1, len(text)):
            if bits >> (place - 1) & 1:
                way.append(text[start:place])
                start = place
        ways.append([*way, text[start:]])
    return ways


def test_text_without_stop_strings_goes_through_at_once() -> None:
    assert [StopMatcher(()).push(piece) for piece in ("a", "", "b")] == ["a", "", "b"]


@pytest.mark.parametrize("pieces", cuts("abSTOPcd"))
def test_nothing_of_a_stop_string_comes_out_however_it_is_cut(pieces: list[str]) -> None:
    matcher = StopMatcher(("STOP",))
    seen = ""
    for piece in pieces:
        seen += matcher.push(piece)
        assert "ab".startswith(seen)
    assert matcher.matched
    assert seen + matcher.flush() == "ab"


@pytest.mark.parametrize("pieces", cuts("aSTSTOx"))
def test_a_beginning_that_goes_on_otherwise_comes_out(pieces: list[str]) -> None:
    assert through(("STOP",), pieces) == ("aSTSTOx", False)


@pytest.mark.parametrize("pieces", cuts("aabaabb"))
def test_a_stop_string_that_overlaps_itself_is_found_where_it_begins_first(pieces: list[str]) -> None:
    assert through(("aabb",), pieces) == ("aab", True)


def test_held_back_text_is_released_at_the_end() -> None:
    matcher = StopMatcher(("\n\nUser:",))
    assert matcher.push("so.\n\nUs") == "so."
    assert matcher.flush() == "\n\nUs"
    assert matcher.flush() == ""


def test_no_more_is_held_back_than_could_be_a_beginning() -> None:
    assert StopMatcher(("STOP",)).push("xSTx") == "xSTx"


def test_the_first_of_several_stop_strings_cuts() -> None:
    assert through(("dog", "fox"), ["the fox and the dog"]) == ("the ", True)


def test_it_says_which_stop_string_was_met() -> None:
    matcher = StopMatcher(("dog", "fox"))
    matcher.push("the do")
    assert matcher.matched is None
    matcher.push("g")
    assert matcher.matched == "dog"


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(("x",))
    assert matcher.push("axb") == "a"
    assert matcher.push("c") + matcher.flush() == ""


def test_empty_stop_strings_never_match() -> None:
    assert through(("", "z"), ["abc"]) == ("abc", False)
