"""Query strings, in which nothing is ignored in silence either."""

from collections import Counter
from collections.abc import Mapping
from typing import get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic.fields import FieldInfo

from shared.errors import InvalidRequest

HINTS = frozenset({"api-version", "beta", "client_version"})  # of Azure's clients, Anthropic's, and Codex


def check_query(query: bytes, known: Mapping[str, FieldInfo] | None = None) -> None:
    """Raises InvalidRequest."""
    if not query:
        return
    lists = {name: _is_list(field) for name, field in (known or {}).items()}
    for name, times in Counter(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)).items():
        if name in HINTS:
            continue
        if name not in lists:
            raise InvalidRequest(f"Unrecognized query parameter supplied: {name}", param=name)
        if times > 1 and not lists[name]:
            raise InvalidRequest(f"Query parameter '{name}' is given {times} times.", param=name)


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(one) is list for one in (field.annotation, *get_args(field.annotation)))


async def _known(request: Request) -> None:
    fields = request.scope["route"].dependant.query_params
    check_query(request.scope["query_string"], {field.alias: field.field_info for field in fields})


def invalid_query(error: RequestValidationError) -> InvalidRequest:
    """Of a parameter in a path or its query."""
    first = error.errors()[0]
    name = str(first["loc"][1])
    return InvalidRequest(f"Invalid value for '{name}': {first['msg']}", param=name)


KNOWN_QUERY = [Depends(_known)]  # of a route whose parameters FastAPI reads
