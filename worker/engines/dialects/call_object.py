"""A tool call that is one JSON object, {"name": ..., "arguments": {...}}, and a list of such."""

import json
from collections.abc import Iterable

from worker.engines.dialects.source import Reads, Source

ARGUMENTS = ("arguments", "parameters")
KEYS = ("name", "id", "type", *ARGUMENTS)


def call_object(source: Source) -> Reads[bool]:
    """Reads the object that comes next. Whether a call was made of it; if not, the source is to give it up."""
    if not (yield from source.take("{")):
        return False
    name = early = ""  # early: arguments that stand before the name
    while True:
        key = yield from _key(source)
        if key in ARGUMENTS and name:
            source.call(name)
            yield from arguments(source)
            yield from _to_the_end(source)
            return True
        value = (yield from _gathered(source)) if key in KEYS else ""
        if not value:
            return False
        if key == "name":
            name = _text(value)
            if name not in source.functions:
                return False
        early = value if key in ARGUMENTS else early
        yield from source.spaces()
        if (name and early) or not (yield from source.take(",")):
            break
    return (yield from _all_at_once(source, name, early))


def call_list(source: Source) -> Reads[bool]:
    """Reads the rest of a list, behind its bracket. Whether all of it were calls; if not, the source is to give up
    what is none."""
    yield from source.spaces()
    if not (yield from call_object(source)):
        return False
    yield from source.spaces()
    while (yield from source.take(",")):
        yield from source.spaces()
        source.mark()
        if not (yield from call_object(source)):
            return False
        yield from source.spaces()
    yield from source.take("]")
    return True


def written_list(calls: Iterable[tuple[str, str]]) -> str:
    """What `call_list` reads, with its bracket: of names and arguments as JSON."""
    return "[" + ", ".join(f'{{"name": {json.dumps(name)}, "arguments": {given}}}' for name, given in calls) + "]"


def _all_at_once(source: Source, name: str, early: str) -> Reads[bool]:
    if not name or not (early or (yield from source.take("}"))):
        return False
    source.call(name)
    source.argue(_object(early or "{}"))
    if early:
        yield from _to_the_end(source)
    return True


def arguments(source: Source) -> Reads[None]:
    """The arguments of the call that began, passed on as they come if they are an object, as they should be."""
    if (yield from source.peek()) == "{":
        yield from source.value(source.argue)
    else:
        source.argue(_object((yield from _gathered(source))))


def _object(written: str) -> str:
    """Some models write the object once more as a string, or null for none."""
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        return written
    return value if isinstance(value, str) else "{}" if value is None else written


def _to_the_end(source: Source) -> Reads[None]:
    """Past what may stand behind the arguments: an id, or nothing."""
    yield from source.spaces()
    while (yield from source.take(",")):
        yield from _key(source)
        yield from _gathered(source)
        yield from source.spaces()
    yield from source.take("}")


def _key(source: Source) -> Reads[str]:
    """The next key, up to its value; nothing if there is none."""
    yield from source.spaces()
    key = _text((yield from _gathered(source)))
    yield from source.spaces()
    if not (yield from source.take(":")):
        return ""
    yield from source.spaces()
    return key


def _gathered(source: Source) -> Reads[str]:
    """The next value; nothing if it is not whole."""
    pieces: list[str] = []
    return "".join(pieces) if (yield from source.value(pieces.append)) else ""


def _text(written: str) -> str:
    """What a JSON string says; nothing if it is none."""
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""
