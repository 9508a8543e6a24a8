"""What a client of the Responses API gets is, field by field, what OpenAI's own types say."""

import json
from collections.abc import Iterator
from typing import Any, cast

import httpx2
import pytest
from openai.types.responses import Response, ResponseFunctionCallArgumentsDoneEvent, ResponseStreamEvent
from openai.types.responses import response_text_delta_event as delta
from openai.types.responses import response_text_done_event as done
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import BaseModel, TypeAdapter

from tests.e2e.test_responses import CALLS, PATH, WEATHER, script
from tests.processes import Stack

EVENT: TypeAdapter[BaseModel] = TypeAdapter(cast(Any, ResponseStreamEvent))
# What OpenAI tells, or asked of older clients, without a type in this release of its library.
UNTYPED: dict[type[BaseModel], set[str]] = {
    Response: {"store"},
    ResponseFunctionCallArgumentsDoneEvent: {"name"},
    delta.Logprob: {"bytes"},
    delta.LogprobTopLogprob: {"bytes"},
    done.Logprob: {"bytes"},
    done.LogprobTopLogprob: {"bytes"},
}
LOGPROBS = {"text": "Hi", "logprobs": [["Hi", -0.5, None, [["Hi", -0.5]]]]}
NOTHING = {"token_ids": [2]}
REQUESTS: dict[str, dict[str, Any]] = {
    "text": {"input": script({"text": "Hel"}, {"text": "lo"})},
    "nothing": {"input": script(NOTHING)},
    "thoughts_and_calls": {"input": script(*CALLS), "tools": [WEATHER], "tool_choice": "auto"},
    "forced_call": {
        "input": script(*CALLS),
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "weather"},
    },
    "logprobs": {"input": script(LOGPROBS), "top_logprobs": 1, "include": ["message.output_text.logprobs"]},
    "cut_off": {"input": script({"text": "Hi", "finish_reason": "length"}), "max_output_tokens": 1},
    "described": {
        "input": script({"text": "{}"}),
        "instructions": "be brief",
        "metadata": {"a": "b"},
        "reasoning": {"effort": "none", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}, "verbosity": "low"},
        "temperature": 0,
    },
}


def check(model: BaseModel, path: str = "") -> None:
    """No field that OpenAI's type does not have."""
    extra = (model.model_extra or {}).keys() - UNTYPED.get(type(model), set())
    assert not extra, f"{path}: {extra}"
    for name in type(model).model_fields:
        value = getattr(model, name)
        for place, one in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(one, BaseModel):
                check(one, f"{path}.{name}[{place}]")


def checked(told: dict[str, Any]) -> dict[str, Any]:
    event = EVENT.validate_json(json.dumps(told), strict=True)
    assert getattr(event, "type") == told["type"], "another type took it"  # noqa: B009
    check(event, told["type"])
    return told


@pytest.fixture
def http(scripted: Stack) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=scripted.url, timeout=20) as http:
        yield http


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    lines = response.text.splitlines()
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [line[7:] for line in lines if line.startswith("event: ")] == [event["type"] for event in told]
    return told


@pytest.mark.parametrize("how", [{"store": False}, {"store": True}, {"background": True}], ids=str)
@pytest.mark.parametrize("case", REQUESTS)
def test_every_event_is_of_its_type(http: httpx2.Client, case: str, how: dict[str, bool]) -> None:
    body = {"model": "echo", "stream": True, **how, **REQUESTS[case]}
    told = [checked(event) for event in events(http.post(PATH, json=body))]
    assert told[-1]["type"] in ("response.completed", "response.incomplete")


@pytest.mark.parametrize("case", REQUESTS)
def test_a_response_and_its_input_are_of_their_types(http: httpx2.Client, case: str) -> None:
    made = http.post(PATH, json={"model": "echo", **REQUESTS[case]}).content
    check(Response.model_validate_json(made, strict=True), "response")
    items = http.get(f"{PATH}/{json.loads(made)['id']}/input_items").content
    check(ResponseItemList.model_validate_json(items, strict=True), "items")


def test_a_failure_is_of_its_type(http: httpx2.Client) -> None:
    """And one that came before anything was made has no items."""
    body = {"model": "echo", "input": "no script", "background": True, "stream": True}
    told = [checked(event) for event in events(http.post(PATH, json=body))]
    assert [event["type"].removeprefix("response.") for event in told] == ["created", "queued", "in_progress", "failed"]
    assert told[-1]["response"]["output"] == []


def test_a_cancelled_response_is_of_its_type(http: httpx2.Client) -> None:
    body = {"model": "echo", "input": script(*[{"text": "x"}] * 30_000), "background": True}
    id = http.post(PATH, json=body).json()["id"]
    made = http.post(f"{PATH}/{id}/cancel").content
    assert json.loads(made)["status"] == "cancelled"
    check(Response.model_validate_json(made, strict=True), "response")
    told = [checked(event) for event in events(http.get(f"{PATH}/{id}?stream=true"))]
    assert told[-1]["type"] == "response.incomplete"
