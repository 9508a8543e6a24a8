"""The part of the OpenAI API that a terminal chat needs, over HTTP. Errors become one line."""

import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Self

import httpx2

from cli.conversation import Message
from shared.errors import one_line

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class ChatError(Exception):
    """The server said no, or nothing; its text is the one line the user sees."""


class ChatClient:
    def __init__(self, base_url: str, api_key: str | None, model: str, options: Mapping[str, Any]) -> None:
        """`options` go into each request as they are."""
        self.model = model
        self._options = options
        self._base_url = base_url
        self._http = httpx2.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(None, connect=5),  # a queued request may wait long; Ctrl-C ends it
            trust_env=httpx2.URL(base_url).host not in LOOPBACK,  # a proxy does not know our localhost
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Raises ChatError."""
        try:
            response = self._http.get("models")
            self._check(response)
            return [model["id"] for model in response.json()["data"]]
        except httpx2.HTTPError as error:
            raise ChatError(self._unreachable(error)) from None
        except (ValueError, KeyError, TypeError):
            raise ChatError(f"{self._base_url} does not speak the OpenAI API") from None

    def stream(self, messages: list[Message]) -> Generator[str]:
        """The answer's pieces. Closing the iterator ends the request. Raises ChatError."""
        body = {"model": self.model, "messages": messages, "stream": True, **self._options}
        try:
            with self._http.stream("POST", "chat/completions", json=body) as response:
                self._check(response)
                yield from _contents(response)
        except httpx2.HTTPError as error:
            raise ChatError(self._unreachable(error)) from None

    def _check(self, response: httpx2.Response) -> None:
        if not response.is_success:
            response.read()
            raise ChatError(_message(response) or f"{self._base_url} answered {response.status_code}")

    def _unreachable(self, error: httpx2.HTTPError) -> str:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return f"no server at {self._base_url}; `tokenbus up` starts one"
        return f"lost the server at {self._base_url}: {one_line(error)}"


def _contents(response: httpx2.Response) -> Iterator[str]:
    for data in _events(response):
        if data == b"[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise ChatError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            if content := choice["delta"].get("content"):
                yield content
    raise ChatError("the answer broke off")


def _events(response: httpx2.Response) -> Iterator[bytes]:
    """The data of each event. The library's own line iterator also splits inside JSON, at U+2028 and its like."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def _message(response: httpx2.Response) -> str | None:
    try:
        message: str = response.json()["error"]["message"]
        return message
    except (ValueError, KeyError, TypeError):
        return None
