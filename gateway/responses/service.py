"""The Responses API between its routes and the rest: what a request needs of stored ones, and how it becomes one."""

import re
import time
from collections.abc import Sequence
from typing import Any

import orjson

from gateway.asked import Asked
from gateway.generate import Answer, Generator
from gateway.hub import Hub
from gateway.recording import Recording
from gateway.responses.followers import Followers
from gateway.responses.items import Item, ItemReference, Said, check_whole, conversation, read_items, stored_items
from gateway.responses.keeper import Keeper
from gateway.responses.records import Record
from gateway.responses.replies import RecordedAnswer
from gateway.responses.schemas import InputTokensRequest, PromptOfResponse, ResponsesRequest
from gateway.schemas.chat import ChatCompletionRequest
from shared.errors import BodyTooLarge, InvalidRequest, NotFound, PreviousNotFound
from shared.messages import Job

ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})_i?[0-9]{1,6}")
MOST_REFERRED = 100
MOST_RECALLED_BYTES = 32 * 2**20  # of stored items in one request, each time that one is referred to


class Responses:
    def __init__(self, generator: Generator, hub: Hub, keeper: Keeper, followers: Followers) -> None:
        self._generator = generator
        self._hub = hub
        self._keeper = keeper
        self._followers = followers

    async def create(self, body: ResponsesRequest, asked: Asked) -> Answer:
        before, said = await self._said(body, asked)
        chat = _chat(body, said)
        if not body.is_stored:
            return await self._generator.chat(chat, asked, "resp_")
        response = described(body, f"resp_{asked.hex}", asked.model)
        kept = [*before, *stored_items(said[len(before) :], asked.hex)]

        opened = False

        async def opens(job: Job) -> Answer:
            nonlocal opened
            opened = True
            recording = await self._keeper.open(job, response, kept)
            on_close = _go_on if body.background else self._keeper.abandon
            return RecordedAnswer(self._hub, recording, on_close)

        try:
            return await self._generator.chat(chat, asked, "resp_", opens)
        except BaseException:
            if opened:
                self._keeper.withdraw(response["id"])
            raise

    async def count(self, body: InputTokensRequest, asked: Asked) -> Answer:
        _, said = await self._said(body, asked)
        payload = _chat(body, said).payload() | {"add_special_tokens": False}
        return await self._generator.ask("tokenize", [payload], asked)

    async def _said(self, body: PromptOfResponse, asked: Asked) -> tuple[list[dict[str, Any]], list[Said]]:
        """The items of the conversation before as they are stored, and all of them."""
        before: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            record = await self._previous(body.previous_response_id)
            before = [*record.items, *record.response["output"]]
            _recall(record.size, asked)
        try:
            said = await self._resolved([*read_items(before), *body.items], asked)
            check_whole(said)
        except ValueError as error:
            raise InvalidRequest(str(error), param="input") from None
        return before, said

    async def _previous(self, id: str) -> Record:
        record = await self._keeper.load(id)
        param = "previous_response_id"
        if record is None:
            raise PreviousNotFound(f"Previous response with id '{id}' not found.", param=param)
        record = await self._followers.up_to_date(record)
        if record.end is None:
            raise InvalidRequest(f"Previous response with id '{id}' has not ended yet.", param=param)
        if record.end.reason is None:
            raise InvalidRequest(f"Previous response with id '{id}' was not completed.", param=param)
        return record

    async def _resolved(self, items: Sequence[Item], asked: Asked) -> list[Said]:
        """With the items that references stand for."""
        stored: dict[str, list[dict[str, Any]]] = {}
        said: list[Said] = []
        for item in items:
            if not isinstance(item, ItemReference):
                said.append(item)
            elif len(stored) < MOST_REFERRED:
                said.append(await self._referred(item.id, stored, asked))
            else:
                raise InvalidRequest(f"Items of at most {MOST_REFERRED} responses may be referred to.", param="input")
        return said

    async def _referred(self, id: str, stored: dict[str, list[dict[str, Any]]], asked: Asked) -> Said:
        """`stored`: the items of the responses that were looked at so far."""
        if place := ITEM_ID.fullmatch(id):
            response = f"resp_{place[1]}"
            if response not in stored:
                record = await self._keeper.load(response)
                stored[response] = [] if record is None else [*record.items, *record.response["output"]]
            for item in stored[response]:
                if item["id"] == id and not isinstance(said := read_items([item])[0], ItemReference):
                    _recall(len(orjson.dumps(item)), asked)
                    return said
        raise NotFound(f"Item with id '{id}' not found.", param="input")

    # -- stored ones ----------------------------------------------------------------------------------------------

    async def retrieve(self, id: str) -> dict[str, Any]:
        """As it is now."""
        return (await self._followers.up_to_date(await self._find(id))).response

    async def follow(self, id: str, starting_after: int | None) -> RecordedAnswer:
        recording = await self._followers.open(await self._find(id), in_part=starting_after is not None)
        return RecordedAnswer(self._hub, recording, self._followers.forget)

    async def cancel(self, id: str) -> dict[str, Any]:
        """As it is for good: cancelled, if it had not ended before."""
        record = await self._find(id)
        if not record.response["background"]:
            raise InvalidRequest("Only background responses can be cancelled: of others, close the connection.")
        if (await self._followers.up_to_date(record)).end is None:
            await self._keeper.cancel(record)
        return await self.retrieve(id)

    async def delete(self, id: str) -> None:
        await self._keeper.delete(await self._find(id))

    async def input_items(self, id: str) -> list[dict[str, Any]]:
        return (await self._find(id)).items

    async def _find(self, id: str) -> Record:
        record = await self._keeper.load(id)
        if record is None:
            raise NotFound(f"Response with id '{id}' not found.")
        return record


def _recall(size: int, asked: Asked) -> None:
    """As if it had been sent again. Raises BodyTooLarge."""
    asked.recalled += size
    asked.size += size
    if asked.recalled > MOST_RECALLED_BYTES:
        raise BodyTooLarge(f"Of stored items a request may go on from {MOST_RECALLED_BYTES} bytes.", param="input")


def _go_on(_: Recording) -> None:
    """Nobody waits for what runs in the background."""


def _chat(body: PromptOfResponse, said: Sequence[Said]) -> ChatCompletionRequest:
    try:
        messages = conversation(body.instructions, said)
    except ValueError as error:
        raise InvalidRequest(str(error), param="input") from None
    try:
        return body.chat(messages)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def described(body: ResponsesRequest, id: str, model: str) -> dict[str, Any]:
    """The response object, before anything is made: what was asked for, with the defaults."""
    said = body.model_dump(mode="json", by_alias=True, exclude={"input"})
    choice = body.tool_choice or "auto"
    text, reasoning = said["text"] or {}, said["reasoning"] or {}
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.is_stored,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": choice if isinstance(choice, str) else choice.told(),
        "tools": said["tools"] or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }
