"""The Responses API by OpenAI's own library, on a worker that says what it is told to."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.responses import FunctionToolParam, Response, ResponseFunctionToolCall, ResponseStreamEvent

from tests.e2e.scripted_worker import CALLS
from tests.e2e.wire import error_of, post
from tests.processes import Stack

PATH = "/v1/responses"
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": None,
}
AROUND = ["response.created", "response.in_progress"]
MESSAGE = ["response.output_item.added", "response.content_part.added"]
TOLD = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


@pytest.fixture
def client(scripted: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def script(*steps: dict[str, Any]) -> str:
    return json.dumps(steps)


def create(client: OpenAI, *steps: dict[str, Any], **fields: Any) -> Response:
    response: Response = client.responses.create(**({"model": "echo", "input": script(*steps)} | fields))
    return response


def stream(client: OpenAI, *steps: dict[str, Any], **fields: Any) -> list[ResponseStreamEvent]:
    return list(client.responses.create(**({"model": "echo", "input": script(*steps)} | fields), stream=True))


def plain(response: Response) -> dict[str, Any]:
    """Without what differs between two replies to one request: ids, and the time."""
    dumped = response.to_dict()
    for item in dumped["output"]:  # type: ignore[attr-defined]
        item.pop("call_id", None)
    return json.loads(json.dumps(dumped | {"created_at": 0}).replace(response.id.removeprefix("resp_"), "ID"))  # type: ignore[no-any-return]


def last(events: list[ResponseStreamEvent]) -> Response:
    response: Response = events[-1].response  # type: ignore[union-attr]
    return response


def test_a_response_has_text_and_usage(client: OpenAI) -> None:
    response = create(client, {"text": "Hel"}, {"text": "lo"}, instructions="be brief", metadata={"a": "b"})
    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.model) == ("response", "completed", "echo")
    assert (response.output_text, response.instructions, response.metadata) == ("Hello", "be brief", {"a": "b"})
    assert (response.error, response.incomplete_details, response.previous_response_id) == (None, None, None)
    assert response.usage is not None
    assert response.usage.to_dict() == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 10,
    }


def test_events_of_text_come_in_order_and_are_numbered(client: OpenAI) -> None:
    events = stream(client, {"text": "Hel"}, {"token_ids": [2]}, {"text": "lo"})
    deltas = ["response.output_text.delta"] * 2
    assert [event.type for event in events] == [*AROUND, *MESSAGE, *deltas, *TOLD, "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    first, done = events[2], events[6]
    assert first.type == "response.output_item.added"
    assert done.type == "response.output_text.done"
    assert (done.item_id, done.output_index, done.content_index, done.text) == (first.item.id, 0, 0, "Hello")
    assert last(events).output_text == "Hello"


@pytest.mark.parametrize("store", [True, False])
def test_a_stream_makes_the_response_that_comes_whole(client: OpenAI, store: bool) -> None:
    whole = create(client, *CALLS, tools=[WEATHER], store=store)
    events = stream(client, *CALLS, tools=[WEATHER], store=store)
    assert plain(last(events)) == plain(whole)
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    calls = [item for item in whole.output if isinstance(item, ResponseFunctionToolCall)]
    assert [(call.name, call.arguments, call.status) for call in calls] == [
        ("weather", '{"city": "Rome"}', "completed"),
        ("weather", "{}", "completed"),
    ]
    assert len({call.call_id for call in calls}) == 2
    kinds = [event.type for event in events]
    assert kinds.count("response.reasoning_text.delta") == 2 or not store  # then pieces may be merged
    assert kinds.count("response.function_call_arguments.done") == 2
    assert [event.output_index for event in events if event.type == "response.output_item.done"] == [0, 1, 2, 3]


def test_the_librarys_own_stream_helper_puts_it_together(client: OpenAI) -> None:
    with client.responses.stream(model="echo", input=script(*CALLS), tools=[WEATHER]) as events:
        for _ in events:
            pass
        final = events.get_final_response()
    assert final.output_text == "I'll look"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]


def test_what_is_cut_off_is_incomplete(client: OpenAI) -> None:
    response = create(client, {"text": "Hel", "finish_reason": "length"}, max_output_tokens=1)
    assert (response.status, response.output[-1].to_dict()["status"]) == ("incomplete", "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    events = stream(client, {"text": "Hel", "finish_reason": "length"})
    assert events[-1].type == "response.incomplete"


def test_a_response_that_says_nothing_says_so_in_a_message(client: OpenAI) -> None:
    response = create(client, {"token_ids": [1]})
    assert [item.type for item in response.output] == ["message"]
    assert response.output_text == ""


def test_log_probabilities_come_with_the_text(client: OpenAI) -> None:
    steps = [
        {"logprobs": [["Hel", -0.5]]},
        {"text": "Hello", "logprobs": [["lo", -0.25, None, [["lo", -0.25]]]]},
    ]
    events = stream(client, *steps, top_logprobs=1, include=["message.output_text.logprobs"])
    (delta,) = [event for event in events if event.type == "response.output_text.delta"]
    assert [(entry.token, entry.logprob) for entry in delta.logprobs] == [("Hel", -0.5), ("lo", -0.25)]
    (item,) = last(events).output
    assert item.type == "message"
    part = item.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [entry.to_dict() for entry in part.logprobs][1] == {
        "token": "lo",
        "logprob": -0.25,
        "bytes": [108, 111],
        "top_logprobs": [{"token": "lo", "logprob": -0.25, "bytes": [108, 111]}],
    }


def test_log_probabilities_of_thoughts_are_not_the_texts(client: OpenAI) -> None:
    steps = [{"reasoning": "hm", "logprobs": [["hm", -1.0]]}, {"text": "Hi", "logprobs": [["Hi", -0.5]]}]
    events = stream(client, *steps, include=["message.output_text.logprobs"])
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [entry.token for entry in done.logprobs] == ["Hi"]


# -- conversations ----------------------------------------------------------------------------------------------------


def prompt(client: OpenAI, **fields: Any) -> dict[str, Any]:
    """What a worker would be given, as this one tells it for `/tokenize`: words of its payload, counted."""
    counted = client.responses.input_tokens.count(**({"model": "echo"} | fields))
    assert counted.object == "response.input_tokens"
    return {"words": counted.input_tokens}


def test_a_conversation_goes_on_from_a_stored_response(client: OpenAI) -> None:
    first = create(client, *CALLS, tools=[WEATHER], instructions="not carried over")
    calls = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
    outputs: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    second = create(
        client, input=[*outputs, {"role": "user", "content": script({"text": "ok"})}], previous_response_id=first.id
    )
    assert second.output_text == "ok"
    assert (second.previous_response_id, second.instructions) == (first.id, None)
    items = client.responses.input_items.list(second.id, order="asc", limit=3)
    assert [item.type for item in items] == [
        *("message", "reasoning", "message", "function_call", "function_call"),
        *("function_call_output", "function_call_output", "message"),
    ]
    assert [item.id for item in items][1:5] == [item.to_dict()["id"] for item in first.output]


def test_output_items_may_be_sent_back_or_referred_to(client: OpenAI) -> None:
    first = create(client, *CALLS, tools=[WEATHER])
    whole: Any = [item.to_dict() for item in first.output]
    references: Any = [{"type": "item_reference", "id": item["id"]} for item in whole]
    end: Any = [
        *({"type": "function_call_output", "call_id": item["call_id"], "output": "x"} for item in whole[2:]),
        {"role": "user", "content": [{"type": "input_text", "text": script({"text": "ok"})}]},
    ]
    for items in (whole, references):
        assert create(client, input=[*items, *end], store=False).output_text == "ok"
    with pytest.raises(openai.NotFoundError, match="msg_nowhere"):
        create(client, input=[{"type": "item_reference", "id": "msg_nowhere"}, *end[-1:]])


def test_what_a_request_recalls_is_bounded(client: OpenAI) -> None:
    """A reference is short, and what it stands for is not: 40 of 900 kB are more than may be recalled."""
    many: Any = [{"role": "user", "content": "w" * 900_000}, {"role": "user", "content": script({"text": "x"})}]
    first = create(client, input=many)
    item = client.responses.input_items.list(first.id, order="asc", limit=1).data[0]
    references: Any = [{"type": "item_reference", "id": item.id}] * 40
    with pytest.raises(openai.APIStatusError) as raised:
        create(client, input=references)
    assert (raised.value.status_code, raised.value.code) == (413, "body_too_large")
    assert create(client, input=[references[0], many[1]]).output_text == "x"


def test_the_whole_conversation_is_counted(client: OpenAI) -> None:
    alone = prompt(client, input="a b c")
    first = create(client, {"text": "x y"})
    assert prompt(client, input="a b c", previous_response_id=first.id)["words"] > alone["words"]


def test_what_cannot_be_gone_on_with_is_refused(client: OpenAI) -> None:
    unstored = create(client, {"text": "x"}, store=False)
    for id in (unstored.id, "resp_nowhere"):
        with pytest.raises(openai.BadRequestError) as raised:
            create(client, {"text": "x"}, previous_response_id=id)
        assert (raised.value.code, raised.value.param) == ("previous_response_not_found", "previous_response_id")
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(id)


# -- stored ones ------------------------------------------------------------------------------------------------------


def test_a_stored_response_is_retrieved_streamed_again_and_deleted(client: OpenAI) -> None:
    events = stream(client, *CALLS, tools=[WEATHER])
    response = last(events)
    assert client.responses.retrieve(response.id) == response
    again = list(client.responses.retrieve(response.id, stream=True))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in events]
    for after in (0, 7, len(events) - 2):
        rest = list(client.responses.retrieve(response.id, stream=True, starting_after=after))
        assert [event.to_dict() for event in rest] == [event.to_dict() for event in events[after + 1 :]]
    client.responses.delete(response.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match=response.id):
            ask(response.id)


def test_a_response_in_the_background_is_asked_for_later(client: OpenAI) -> None:
    queued = create(client, *CALLS, tools=[WEATHER], background=True)
    assert (queued.status, queued.background, queued.output) == ("queued", True, [])
    events = list(client.responses.retrieve(queued.id, stream=True))
    assert [event.type for event in events][:3] == ["response.created", "response.queued", "response.in_progress"]
    response = client.responses.retrieve(queued.id)
    assert response == last(events)
    assert (response.status, response.output_text) == ("completed", "I'll look")
    assert client.responses.cancel(queued.id) == response  # it has ended: nothing changes


def test_only_what_runs_in_the_background_is_cancelled(client: OpenAI) -> None:
    response = create(client, {"text": "x"})
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(response.id)


def test_a_failure_in_the_background_is_told_in_the_response(client: OpenAI) -> None:
    failed = client.responses.create(model="echo", input="no script", background=True)
    (*_, end) = client.responses.retrieve(failed.id, stream=True)
    assert end.type == "response.failed"
    assert end.response == client.responses.retrieve(failed.id)
    assert end.response.status == "failed"
    assert end.response.error is not None
    assert (end.response.error.code, end.response.error.message[:9]) == ("invalid_prompt", "no script")


def test_a_failure_that_comes_first_is_a_plain_error_and_nothing_is_stored(client: OpenAI, scripted: Stack) -> None:
    for fields in ({}, {"stream": True}):
        response = post(scripted, PATH, {"model": "echo", "input": "no script", **fields})
        assert response.status_code == 400
        assert "no script" in error_of(response)["message"]


def test_input_items_come_in_pages(client: OpenAI) -> None:
    turns: Any = [{"role": "user", "content": f"{number}"} for number in range(4)]
    response = create(client, input=[*turns, {"role": "user", "content": script({"text": "x"})}])
    page = client.responses.input_items.list(response.id, limit=2)
    assert page.has_more
    assert len(page.data) == 2
    assert len(list(page)) == 5
    ascending = list(client.responses.input_items.list(response.id, order="asc"))
    assert ascending == list(client.responses.input_items.list(response.id))[::-1]
    with pytest.raises(openai.BadRequestError, match="msg_nowhere"):
        client.responses.input_items.list(response.id, after="msg_nowhere")


def test_what_a_library_asks_to_be_included_is_a_hint(client: OpenAI) -> None:
    response = create(client, {"text": "x"})
    asked: Any = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    assert client.responses.retrieve(response.id, include=asked).id == response.id
    assert len(list(client.responses.input_items.list(response.id, include=asked))) == 1


def test_what_a_library_writes_down_of_a_response_is_taken_back(client: OpenAI) -> None:
    """With all fields of its own types, null where there was nothing."""
    first = create(client, *CALLS, tools=[WEATHER])
    assert "async_" in first.output[-1].model_dump()
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "4", "name": None}
        for item in first.output
        if item.type == "function_call"
    ]
    said = [item.model_dump() for item in first.output]
    again: Any = [*said, *outputs, {"role": "user", "content": script({"text": "y"})}]
    tools: Any = [tool.model_dump() for tool in first.tools]
    assert create(client, input=again, tools=tools).output_text == "y"


def test_an_id_stands_for_one_item(client: OpenAI) -> None:
    first = create(client, {"text": "x"}, input=[{"id": "msg_1", "role": "user", "content": script({"text": "x"})}])
    again: Any = {"id": "msg_1", "role": "user", "content": "x"}
    for fields in ({"input": [again, again]}, {"input": [again], "previous_response_id": first.id}):
        with pytest.raises(openai.BadRequestError, match="'msg_1' comes twice") as caught:
            create(client, **fields)
        assert caught.value.param == "input"


# -- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "audio_part": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
    "unknown_item": {"input": [{"type": "computer_call"}]},
    "no_input": {"input": ""},
    "an_item_that_is_none": {"input": [3]},
    "hosted_tool": {"tools": [{"type": "web_search"}]},
    "custom_tool": {"tools": [{"type": "custom", "name": "x"}]},
    "conversation": {"conversation": "conv_1"},
    "prompt": {"prompt": {"id": "x"}},
    "truncation": {"truncation": "auto"},
    "background_without_store": {"background": True, "store": False},
    "unknown_include": {"include": ["x"]},
    "unknown_field": {"n": 2},
    "max_output_tokens": {"max_output_tokens": 0},
    "temperature": {"temperature": 3},
    "top_logprobs": {"top_logprobs": 21},
    "bad_schema": {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "none"}}}},
    "unknown_format": {"text": {"format": {"type": "xml"}}},
    "tool_choice": {"tool_choice": "required"},
    "output_of_no_call": {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]},
    "stream_options": {"stream_options": {"include_obfuscation": False}},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(scripted: Stack, case: str) -> None:
    response = post(scripted, PATH, {"model": "echo", "input": script({"text": "x"}), **REFUSED[case]})
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert "\n" not in error["message"]
    param = next(iter(REFUSED[case])).split(".")[0]
    assert error["param"] in (param, None)
    assert error["param"] == param or param in error["message"]


def test_errors_of_workers_name_the_field_of_this_api(scripted: Stack) -> None:
    response = post(scripted, PATH, {"model": "echo", "input": "no script"})
    assert error_of(response)["param"] == "input"


@pytest.mark.parametrize(
    "query",
    [
        *("stream=2", "starting_after=-1&stream=true", "starting_after=x&stream=true", "starting_after=1"),
        *("before=x", "stream=true&stream=false", "include=nonsense", "include%5B%5D=nonsense"),
    ],
)
def test_bad_queries_are_told_so(client: OpenAI, scripted: Stack, query: str) -> None:
    response = create(client, {"text": "x"})
    with httpx2.Client(base_url=scripted.url) as http:
        refused = http.get(f"{PATH}/{response.id}?{query}")
    assert refused.status_code == 400
    assert error_of(refused)["param"] == unquote(query.split("=")[0])


def test_methods_that_are_not_there_are_told_so(scripted: Stack) -> None:
    with httpx2.Client(base_url=scripted.url) as http:
        for method, path in (
            *(("PUT", PATH), ("PUT", f"{PATH}/resp_x"), ("GET", f"{PATH}/resp_x/cancel")),
            *((method, f"{PATH}/input_tokens") for method in ("GET", "DELETE", "PUT")),
        ):
            refused = http.request(method, path)
            assert (refused.status_code, error_of(refused)["code"]) == (405, "method_not_allowed")
        assert http.head(f"{PATH}/input_tokens").status_code == 405
        assert http.options(f"{PATH}/input_tokens").headers["allow"] == "OPTIONS, POST"


def test_what_stands_beside_stored_responses_is_none_of_them(scripted: Stack) -> None:
    with httpx2.Client(base_url=scripted.url) as http:
        for method, path in (("POST", "compact"), ("GET", "compact"), ("POST", "input_tokens/cancel")):
            refused = http.request(method, f"{PATH}/{path}")
            assert (refused.status_code, error_of(refused)["message"]) == (404, f"There is no {PATH}/{path}.")
