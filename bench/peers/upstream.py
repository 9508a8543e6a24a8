"""`python -m bench.peers.upstream --port N`: answers OpenAI chat requests by itself, as cheaply as Python can.

The model `paced` streams a token per 10 ms, any other all of them at once. No validation: it is what LiteLLM talks to.
"""

import argparse
import asyncio
from typing import Any

import httptools
import orjson
import uvloop

from bench.peers.steps import TOKEN, Steps
from bench.systems import PACE_MS

ENVELOPE = {"id": "chatcmpl-upstream", "object": "chat.completion.chunk", "created": 1, "model": "upstream"}
PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
MODELS = {"object": "list", "data": [{"id": name, "object": "model"} for name in ("fast", "paced")]}


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return _chunked(b"data: " + orjson.dumps({**ENVELOPE, "choices": [choice]}) + b"\n\n")


def _chunked(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


ROLE = _event({"role": "assistant", "content": ""})
ONE = _event({"content": TOKEN})
END = _event({}, "length") + _chunked(b"data: [DONE]\n\n") + LAST_CHUNK


class Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self, paced: Steps) -> None:
        self._paced = paced
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._left = 0  # tokens of a paced stream

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._paced.discard(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        if not self._body:  # LiteLLM asks now and then which models there are
            self._transport.write(_plain(MODELS))
            return
        request = orjson.loads(self._body)
        self._body = b""
        tokens = request.get("max_tokens") or request.get("max_completion_tokens") or 16
        if not request.get("stream"):
            self._transport.write(_plain(_completion(tokens)))
        elif request["model"] != "paced":
            self._transport.write(STREAM_HEAD + ROLE + ONE * tokens + END)
        else:
            self._transport.write(STREAM_HEAD + ROLE)
            self._left = tokens
            self._paced.add(self, self._advance)

    def _advance(self) -> bool:
        self._left -= 1
        self._transport.write(ONE if self._left else ONE + END)
        return self._left > 0


def _plain(body: dict[str, Any]) -> bytes:
    encoded = orjson.dumps(body)
    return PLAIN_HEAD % len(encoded) + encoded


def _completion(tokens: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": TOKEN * tokens}
    return {
        **ENVELOPE,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens},
    }


async def serve(port: int) -> None:
    paced = Steps(PACE_MS / 1000)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(paced), "127.0.0.1", port, backlog=2048, reuse_address=True
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
