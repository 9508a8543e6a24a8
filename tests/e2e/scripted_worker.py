"""`python -m tests.e2e.scripted_worker`: a worker that says what its prompt tells it to. The last user message is a
JSON list of what its steps make, as fields of an Output; everything else of it is the real worker."""

from collections import deque
from typing import Any

import msgspec

from shared.errors import InvalidRequest
from shared.messages import Usage
from worker import __main__ as worker
from worker.engines import echo_impl
from worker.engines.base import EngineInfo, EngineRequest, Output
from worker.engines.figures import CacheFigures
from worker.engines.options import EngineOptions

MAX_MODEL_LEN = 1000
# A script with all that a reply may be made of.
CALLS = [
    {"reasoning": "where? "},
    {"reasoning": "Rome", "text": "I'll "},
    {"text": "look"},
    {"tool_calls": [{"index": 0, "name": "weather", "arguments": ""}]},
    {"tool_calls": [{"index": 0, "arguments": '{"city": "Ro'}]},
    {"tool_calls": [{"index": 0, "arguments": 'me"}'}, {"index": 1, "name": "weather", "arguments": "{}"}]},
]


class ScriptedStepper:
    """In the place of the echo engine's. Words are tokens."""

    def __init__(self, options: EngineOptions) -> None:
        self._running: dict[str, deque[Output]] = {}

    def load(self) -> EngineInfo:
        return EngineInfo("scripted", "scripted", MAX_MODEL_LEN, 8, resumable=False)

    def prepare(self, request: EngineRequest) -> Any:
        usage = Usage(prompt_tokens=7, completion_tokens=3, reasoning_tokens=1)
        if request.kind == "chat":
            return request.id, self._script(request, usage)
        if request.kind not in ("tokenize", "detokenize", "rerank"):
            raise InvalidRequest(f"there is no script for {request.kind}")
        result = getattr(self, request.kind)(request.payload)
        return Output(id=request.id, result=result, finish_reason="stop", usage=Usage(7, 0))

    def _script(self, request: EngineRequest, usage: Usage) -> deque[Output]:
        text = request.payload["messages"][-1]["content"]
        try:
            steps = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"no script: {error}", param="messages") from error
        end = {"finish_reason": "stop", "usage": usage}
        steps[-1] = end | steps[-1]
        return deque(msgspec.convert({"id": request.id, "token_ids": [1], **step}, Output) for step in steps)

    def tokenize(self, payload: Any) -> dict[str, Any]:
        """What the payload says, word for word, so that a test sees it."""
        words = payload["prompt"].split() if "prompt" in payload else msgspec.json.encode(payload).decode().split()
        return {"tokens": list(range(len(words))), "token_strs": words}

    def detokenize(self, payload: Any) -> dict[str, Any]:
        return {"prompt": " ".join(map(str, payload["tokens"]))}

    def rerank(self, payload: Any) -> dict[str, Any]:
        """How many words the query and a document share."""
        query = set(payload["query"].split())
        return {"scores": [float(len(query & set(document.split()))) for document in payload["documents"]]}

    def add(self, prepared: Any) -> None:
        id, script = prepared
        self._running[id] = script

    def abort(self, request_id: str) -> None:
        self._running.pop(request_id, None)

    def abort_all(self) -> list[str]:
        ids = list(self._running)
        self._running.clear()
        return ids

    def has_work(self) -> bool:
        return bool(self._running)

    def cache(self) -> CacheFigures:
        return CacheFigures()

    def step(self) -> list[Output]:
        outputs = [script.popleft() for script in self._running.values()]
        self._running = {id: script for id, script in self._running.items() if script}
        return outputs


if __name__ == "__main__":
    echo_impl.EchoStepper = ScriptedStepper  # type: ignore[misc, assignment]
    raise SystemExit(worker.main())
