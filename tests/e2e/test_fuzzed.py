"""schemathesis against what /openapi.json says: requests that are right, and requests that are wrong in one place.

The same requests in every run: those that hold each bound of each schema, and a few at random, from a fixed seed.
"""

import copy
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig

from tests.description import document
from tests.e2e.conftest import EMBEDDINGS, embedding_weights, server_in
from tests.processes import Stack

pytestmark = pytest.mark.model
KEY = "sk-fuzzed"
FEW = 8  # tokens of a reply
STORED: list[str] = []  # the id of a response that half of the requests that name one are about
CONFIG = {
    "cache": {"enabled": False},
    "generation": {"max-examples": 10, "deterministic": True, "no-shrink": True, "database": "none"},
    "phases": {"stateful": {"enabled": False}},
    "checks": {
        # What breaks a bound may be larger than any body may be.
        "negative_data_rejection": {"expected-statuses": ["400", "404", "405", "413", "415"]},
    },
}
# Of right requests: what a schema cannot say, and so only the 400 tells.
BEYOND_SCHEMAS = [
    r"two functions have the same name",
    r"'tool_choice' names .* which is not among the 'tools'",
    r"'continue_final_message' needs a last message of role 'assistant'",
    r"'continue_final_message' and 'add_generation_prompt' cannot both be true",
    r"'best_of' must not be less than 'n'",
    r"'best_of' cannot be streamed",
    r"at most \d+ replies are allowed",
    r"'max_tokens' must be more than 'thinking.budget_tokens'",
    r"a 'tool_result' is of .*, which no 'tool_use' before it has",
    r"the last 'tool_use' needs a 'tool_result'",
    r"content blocks of type .* are not supported here",  # by this role
    r"The grammar or schema cannot be used|The grammar cannot be read",
    r"maximum context length",
    r"it is a string, but not one that holds",
    r"'background' needs 'store'",  # which is not fuzzed
    r"No tool call found for function call output",
    r"Previous response with id .* not found",
    r"There is no item '",
    r"'starting_after' is only allowed with 'stream'|The stream of this response is not kept",
    r"Only background responses can be cancelled",
    r"'messages': List should have at least 1 item",  # an empty turn of Claude's is the beginning of its next
    r"must not contain an empty string",  # of a model that has no token for it
    r"The echo engine (does not support|needs)|This model (makes embeddings|does not chat)",
    r"is not a token id of this model|must be strings or lists of token ids of this model",
    r"This model's embeddings have \d+ dimensions",
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    server = server_in(tmp_path_factory.mktemp("redis"))
    server.start()
    stack = Stack(server.url, tmp_path_factory.mktemp("fuzzed"))
    await stack.gateway("--default-max-tokens", str(FEW), TOKENBUS_API_KEYS=KEY)
    await stack.worker("--model-names", "echo")
    await stack.worker("--model-path", embedding_weights(), "--model-names", EMBEDDINGS)
    response = {"model": "echo", "input": "a b", "background": True}
    with httpx2.Client(base_url=stack.url) as http:
        STORED.append(http.post("/v1/responses", headers={"x-api-key": KEY}, json=response).json()["id"])
    yield stack
    said = [process.said() for process in stack._processes]
    stack.close()
    server.kill()
    assert not any("Traceback" in text or "ERROR" in text for text in said), said


def fuzzable(document: dict[str, Any]) -> dict[str, Any]:
    """Of a schema with five rules between its fields schemathesis can make nothing."""
    document = copy.deepcopy(document)
    document["components"]["schemas"]["ResponsesRequest"]["allOf"].pop(0)
    return document


DOCUMENT = document(KEY)
schema = schemathesis.openapi.from_dict(fuzzable(DOCUMENT), config=SchemathesisConfig.from_dict(CONFIG))


@schemathesis.hook
def before_call(_: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Most requests are for a model that is there, none is for a long reply, and none ends for want of time."""
    if has_time(case.headers.get("x-request-timeout", "")):
        case.headers["x-request-timeout"] = "30"
    if "id" in case.path_parameters and case.method != "DELETE" and len(case.path_parameters["id"]) % 2:
        case.path_parameters["id"] = STORED[0]
    if not isinstance(case.body, dict):
        return
    case.body = with_integers(case.body)
    model = case.body.get("model")
    if isinstance(model, str) and 1 <= len(model) <= 512 and len(model) % 4:
        embeds = any(word in case.path for word in ("embed", "rerank", "tokenize"))
        case.body["model"] = EMBEDDINGS if embeds else "echo"
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if type(case.body.get(name)) is int and FEW < case.body[name] < 2**64:
            case.body[name] = FEW


def with_integers(value: Any) -> Any:
    """5.0 as 5: for a schema both are integers, for the server, as for OpenAI's, it is a matter of spelling."""
    if isinstance(value, dict):
        return {name: with_integers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [with_integers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def has_time(timeout: str) -> bool:
    try:
        return float(timeout) > 0
    except ValueError:
        return False


@schemathesis.check
def only_what_no_schema_says_is_refused(_: CheckContext, response: Response, case: Case) -> None:
    """In the place of positive_data_acceptance, which takes no reasons."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    message = response.json()["error"]["message"]
    assert any(re.search(reason, message) for reason in BEYOND_SCHEMAS), message


@schema.parametrize()
def test_every_answer_is_one_that_is_described(case: Case, fuzzed: Stack) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    excluded = [CHECKS.get_one("positive_data_acceptance")]
    case.call_and_validate(base_url=fuzzed.url, headers=key, excluded_checks=excluded, timeout=30)


def test_what_is_served_is_what_was_fuzzed(fuzzed: Stack) -> None:
    with httpx2.Client(base_url=fuzzed.url) as http:
        assert http.get("/openapi.json", headers={"x-api-key": KEY}).json() == DOCUMENT
