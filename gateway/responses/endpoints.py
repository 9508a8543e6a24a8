"""The routes of the Responses API."""

from functools import partial
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, Query, Response
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.types import Receive, Scope, Send

from gateway.bodies import Bodies
from gateway.endpoints import Acceptance, Endpoint
from gateway.generate import Answer
from gateway.queries import KNOWN_QUERY
from gateway.replies import Reply, StreamReply, json_response, send_json
from gateway.responses.errors import PATH
from gateway.responses.output import beginning
from gateway.responses.replies import RecordedAnswer, ResponseEvents, ResponseReply
from gateway.responses.schemas import Included, InputTokensRequest, ResponsesRequest
from gateway.responses.service import Responses, described
from gateway.results import ResultReply
from shared.errors import InvalidRequest


class Keeping(Acceptance, Protocol):
    """The gateway, as far as these routes know it."""

    responses: Responses


class Accepted(Reply):
    """Of a response in the background: that it will be."""

    def __init__(self, answer: Answer, response: dict[str, Any]) -> None:
        super().__init__(answer)
        self._response = response

    async def _write(self, send: Send) -> None:
        await send_json(send, self._response)


def response_endpoints(gateway: Keeping, bodies: Bodies) -> dict[str, Endpoint[Any]]:
    """By path."""

    def reply(body: ResponsesRequest, answer: Answer) -> Reply:
        if isinstance(answer, RecordedAnswer):
            response = answer.recording.response
        else:
            response = described(body, answer.id, answer.model)
        if body.stream:
            events = partial(ResponseEvents, response)
            return StreamReply(answer, events, include_usage=True, waits=not body.background)
        return Accepted(answer, response) if body.background else ResponseReply(answer, response)

    def counted(_: InputTokensRequest, answer: Answer) -> Reply:
        return ResultReply(
            answer, lambda results: {"object": "response.input_tokens", "input_tokens": len(results[0]["tokens"])}
        )

    async def responses() -> None:
        """A response of items; with `stream`, as server-sent events; with `background`, to be asked for later."""

    async def input_tokens() -> None:
        """How many tokens the prompt of such a request has."""

    create, count = gateway.responses.create, gateway.responses.count
    return {
        PATH: Endpoint(gateway, bodies, ResponsesRequest, create, reply, responses),
        f"{PATH}/input_tokens": Endpoint(gateway, bodies, InputTokensRequest, count, counted, input_tokens),
    }


class Streamed(Response):
    """A reply that FastAPI hands on."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._reply.write(send, scope["state"]["client"])


class _StoredId(StringConvertor):
    """Of a path: what stands beside stored responses is no id of one."""

    regex = r"(?!(?:input_tokens|compact)(?:/|$))[^/]+"


register_url_convertor("stored", _StoredId())
STORED = f"{PATH}/{{id:stored}}"

IncludeHint = Annotated[list[Included] | None, Query(description="a hint")]
IncludeOfSdk = Annotated[list[Included] | None, Query(alias="include[]", description="the same, as libraries write it")]


def add_stored_responses(app: FastAPI, gateway: Keeping) -> None:
    stored = gateway.responses

    @app.get(STORED, summary="A stored response; with `stream`, its events", dependencies=KNOWN_QUERY)
    async def retrieve(
        id: str,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0)] = None,
        include: IncludeHint = None,
        include_of_sdk: IncludeOfSdk = None,
        include_obfuscation: Annotated[bool | None, Query(description="a hint")] = None,
    ) -> Response:
        if not stream:
            if starting_after is not None:
                raise InvalidRequest("'starting_after' is only allowed with 'stream'.", param="starting_after")
            return json_response(await gateway.accept(lambda: stored.retrieve(id)))
        answer = await gateway.accept(lambda: stored.follow(id, starting_after))
        after = -1 if starting_after is None else starting_after
        events = partial(ResponseEvents, beginning(answer.recording.response), starting_after=after)
        return Streamed(StreamReply(answer, events, include_usage=True, waits=False))

    @app.delete(STORED, summary="Forget a stored response, and end what makes it", dependencies=KNOWN_QUERY)
    async def delete(id: str) -> Response:
        await gateway.accept(lambda: stored.delete(id))
        return json_response({"id": id, "object": "response", "deleted": True})

    @app.post(f"{STORED}/cancel", summary="End a response in the background", dependencies=KNOWN_QUERY)
    async def cancel(id: str) -> Response:
        return json_response(await gateway.accept(lambda: stored.cancel(id)))

    @app.get(f"{STORED}/input_items", summary="What a stored response was made from", dependencies=KNOWN_QUERY)
    async def input_items(
        id: str,
        after: Annotated[str | None, Query(description="an item's id")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        include: IncludeHint = None,
        include_of_sdk: IncludeOfSdk = None,
    ) -> Response:
        items = await gateway.accept(lambda: stored.input_items(id))
        return json_response(_page(items if order == "asc" else items[::-1], after, limit))


def _page(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    first = 0
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"There is no item '{after}'.", param="after")
        first = places[0] + 1
    page = items[first : first + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": first + limit < len(items),
    }
