"""What there is to ask for: `GET /v1/models`."""

from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Response

from gateway.aliases import Aliases
from gateway.queries import KNOWN_QUERY
from gateway.replies import json_response
from registry.directory import Directory, Snapshot
from shared.errors import ModelNotFound
from shared.messages import LOAD_STATES

Card = dict[str, Any]


class Listed(Protocol):
    """The gateway, as far as the list knows it."""

    directory: Directory
    aliases: Aliases


def add_models(app: FastAPI, gateway: Listed) -> None:
    async def cards() -> dict[str, Card]:
        snapshot = await gateway.directory.look()
        names = {name for name in snapshot.live_names() if snapshot.is_live(name)} | set(snapshot.loadable)
        models = {name: _card(snapshot, name) for name in names}
        aliases = {name: _of_alias(name, shares, models) for name, shares in gateway.aliases.shares.items()}
        return models | {name: card for name, card in aliases.items() if card is not None}

    @app.get("/v1/models", summary="Names that somebody serves, or loads on demand", dependencies=KNOWN_QUERY)
    async def models(limit: Annotated[int | None, Query(ge=1, description="the first so many")] = None) -> Response:
        data = [card for _, card in sorted((await cards()).items())]
        return json_response({"object": "list", "data": data[:limit]})

    @app.get("/v1/models/{name:path}", summary="One of the names that are listed", dependencies=KNOWN_QUERY)
    async def model(name: str) -> Response:
        card = (await cards()).get(name)
        if card is None:
            raise ModelNotFound(gateway.directory.not_found(name), param="model")
        return json_response(card)


def _card(snapshot: Snapshot, name: str) -> Card:
    record = snapshot.names.get(name)
    state = "loaded" if snapshot.is_live(name) else snapshot.loadable[name].state
    card: Card = {
        "id": name,
        "object": "model",
        "created": snapshot.first_started(record.model) if record else 0,
        "owned_by": "tokenbus",
        "status": {"value": state},
    }
    return card | ({"max_model_len": record.max_model_len} if record else {})


def _of_alias(name: str, shares: Any, models: dict[str, Card]) -> Card | None:
    """None if there is nothing behind it. Only what is true of all of its models is said of it."""
    there = [models[model] for model in shares if model in models]
    if not there:
        return None
    states = [card["status"]["value"] for card in there]
    card: Card = {
        "id": name,
        "object": "model",
        "created": max(card["created"] for card in there),
        "owned_by": "tokenbus",
        "status": {"value": max(states, key=LOAD_STATES.index)},
        "shares": shares,
    }
    lengths = [card["max_model_len"] for card in there if "max_model_len" in card]
    return card | ({"max_model_len": min(lengths)} if lengths else {})
