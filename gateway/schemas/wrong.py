"""What is wrong with a request, in one line."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class Wrong(NamedTuple):
    message: str
    param: str | None


def wrong(error: ValidationError, given: Any) -> Wrong:
    """Of all that is, what tells most."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    places = [_wrong_place(one, given) for one in errors]
    # Of a value that may be one of several things, the one that it has come closest to being.
    alike = [number for number, place in enumerate(places) if place[:1] == places[0][:1]]
    number = max(alike, key=lambda number: len(places[number]))
    place, reason = places[number], errors[number]["msg"].removeprefix("Value error, ")
    if errors[number]["type"] == "model_type":  # its own words name a class of ours
        reason = "Input should be an object"
    if not place:
        return Wrong(reason, None)
    name = ".".join(place)
    if errors[number]["type"] == "extra_forbidden":
        return Wrong(f"Unrecognized request argument supplied: {name}", place[0])
    return Wrong(f"Invalid value for '{name}': {reason}", place[0])


def _wrong_place(error: ErrorDetails, given: Any) -> list[str]:
    """Of what is wrong, be it only that it is missing."""
    missing = [str(error["loc"][-1])] if error["type"] == "missing" else []
    return _place(error["loc"], given) + missing


def _place(parts: Sequence[int | str], given: Any) -> list[str]:
    """Where it is, without what pydantic calls the alternatives on the way; they may be called as keys."""
    if not parts:
        return []
    part, skipped = parts[0], _place(parts[1:], given)
    is_there = part in given if isinstance(given, dict) else isinstance(given, list) and isinstance(part, int)
    taken = [str(part), *_place(parts[1:], given[part])] if is_there else []
    return taken if len(taken) > len(skipped) else skipped
