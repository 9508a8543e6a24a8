"""Below the SDK: bodies as bytes, sockets that close when told, and what a stream says line by line."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tests.processes import Stack

JSON = {"content-type": "application/json"}


def chat(text: str, **options: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **options}


def cycle(text: str, tokens: int) -> str:
    """What the echo engine makes of a prompt."""
    words = text.split()
    return " ".join(words[i % len(words)] for i in range(tokens))


def post(stack: Stack, path: str, body: Any, **headers: str) -> httpx2.Response:
    """`body` as JSON, or as it is if it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with httpx2.Client(base_url=stack.url, timeout=60) as http:
        return http.post(path, content=content, headers={**JSON, **headers})


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error object, after a look at its shape."""
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert isinstance(body["error"]["message"], str)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error


def refusal_of(response: httpx2.Response) -> dict[str, Any]:
    """The error of a path of either shape."""
    body = response.json()
    if "type" not in body:
        return error_of(response)
    assert set(body) == {"type", "error", "request_id"}, body
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}, body
    assert body["request_id"] == response.headers["request-id"]
    error: dict[str, Any] = body["error"]
    return error


async def stream(stack: Stack, body: dict[str, Any], path: str = "/v1/chat/completions") -> "Streamed":
    """Reads a stream to its end."""
    async with (
        httpx2.AsyncClient(base_url=stack.url, timeout=90) as http,
        http.stream("POST", path, json={**body, "stream": True}) as response,
    ):
        return await Streamed.read(response.status_code, response.aiter_lines())


class Streamed:
    """The events of one stream."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.chunks: list[dict[str, Any]] = []
        self.error: dict[str, Any] | None = None
        self.done = False
        self.rest = ""  # lines that are no events

    @classmethod
    async def read(cls, status: int, lines: AsyncIterator[str]) -> "Streamed":
        streamed = cls(status)
        async for line in lines:
            streamed.take(line)
        return streamed

    @classmethod
    def parse(cls, lines: Iterable[str]) -> "Streamed":
        streamed = cls(200)
        for line in lines:
            streamed.take(line)
        return streamed

    def take(self, line: str) -> None:
        assert not self.done or not line, f"{line!r} after [DONE]"
        if line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                self.error = chunk["error"]
            else:
                self.chunks.append(chunk)
        elif line and not line.startswith(":"):
            self.rest += line

    def choices(self, index: int = 0) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == index]

    def text(self, index: int = 0) -> str:
        choices = self.choices(index)
        return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)

    def reasoning(self, index: int = 0) -> str:
        return "".join(choice["delta"].get("reasoning_content", "") for choice in self.choices(index))

    def calls(self, index: int = 0) -> list[tuple[str, str]]:
        """Names and arguments; ids, types and names have come once."""
        calls: list[tuple[str, str]] = []
        for choice in self.choices(index):
            for piece in choice["delta"].get("tool_calls", ()):
                is_first = piece["index"] == len(calls)
                assert is_first == ("id" in piece) == ("type" in piece) == ("name" in piece["function"])
                if is_first:
                    calls.append((piece["function"]["name"], ""))
                name, arguments = calls[-1]
                calls[-1] = (name, arguments + piece["function"]["arguments"])
        return calls

    @property
    def finish_reasons(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices() if choice["finish_reason"]]


class Connection:
    """One TCP connection to the gateway, driven by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, stack: Stack) -> "Connection":
        address = urlsplit(stack.url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def send(self, body: Any, path: str = "/v1/chat/completions", head: str = "", *, apart: bool = False) -> None:
        """`apart`: the head first, then the body."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}"
        self.writer.write(f"{lines}Content-Length: {len(content)}\r\n\r\n".encode())
        if apart:
            await asyncio.sleep(0.05)
        self.writer.write(content)
        await self.writer.drain()

    async def until(self, needle: bytes) -> bytes:
        async with asyncio.timeout(20):
            return await self.reader.readuntil(needle)

    def reset(self) -> None:
        """The client is gone, as when its process is killed."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()
