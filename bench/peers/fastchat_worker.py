"""A FastChat worker without a model, run by FastChat's Python: N tokens for `max_new_tokens` N, at once or paced.

It streams from an async generator, as FastChat's vLLM worker does: cheaper than its model worker's threads.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastchat.conversation import Conversation, get_conv_template  # type: ignore[import-not-found]
from fastchat.serve import base_model_worker  # type: ignore[import-not-found]

from bench.peers.steps import TOKEN
from bench.systems import PACE_MS

CONTEXT_LENGTH = 1 << 20
CONCURRENCY = 1 << 20  # the worker is not what is measured


class SyntheticWorker(base_model_worker.BaseModelWorker):  # type: ignore[misc]
    def __init__(self, controller: str, address: str, models: list[str]) -> None:
        super().__init__(controller, address, "synthetic", models[0], models, CONCURRENCY)
        self.context_len = CONTEXT_LENGTH
        self.init_heart_beat()

    def make_conv_template(self, conv_template: str | None = None, model_path: str | None = None) -> Conversation:
        return get_conv_template("raw")  # the base class would look for it in the models' adapters, which need torch

    def count_token(self, params: dict[str, Any]) -> dict[str, int]:
        return {"count": len(params["prompt"].split()), "error_code": 0}

    async def generate_stream_gate(self, params: dict[str, Any]) -> AsyncIterator[bytes]:
        started, tokens, paced = time.monotonic(), params["max_new_tokens"], params["model"] == "paced"
        for made in range(1, tokens + 1):
            if paced:
                await asyncio.sleep(max(0.0, started + made * PACE_MS / 1000 - time.monotonic()))
            yield _chunk(params, made, None)
        yield _chunk(params, tokens, "length")

    def generate_gate(self, params: dict[str, Any]) -> dict[str, Any]:
        if params["model"] == "paced":
            time.sleep(params["max_new_tokens"] * PACE_MS / 1000)
        return _state(params, params["max_new_tokens"], "length")


def _state(params: dict[str, Any], made: int, reason: str | None) -> dict[str, Any]:
    """FastChat sends all of the text each time."""
    prompt = len(params["prompt"].split())
    usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return {"text": TOKEN * made, "error_code": 0, "usage": usage, "finish_reason": reason}


def _chunk(params: dict[str, Any], made: int, reason: str | None) -> bytes:
    return json.dumps(_state(params, made, reason)).encode() + b"\0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--controller-address", required=True)
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    SyntheticWorker(given.controller_address, f"http://{given.host}:{given.port}", given.models)
    uvicorn.run(base_model_worker.app, host=given.host, port=given.port, log_level="info")


if __name__ == "__main__":
    main()
