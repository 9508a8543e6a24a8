"""Streams of the echo engine that are watched while something breaks, and what a whole one looks like."""

import asyncio
from collections import Counter
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import wait_until
from tests.e2e.wire import Streamed, chat, cycle
from tests.processes import Stack

CHAT = "/v1/chat/completions"
GOES_ON_WITHIN_S = 60.0  # whatever happens: comments keep a stream that has stopped alive for ever


class Progress:
    """How many chunks the watched streams have received, so that a fault strikes within their lives."""

    def __init__(self) -> None:
        self.chunks = 0
        self.by_stream: Counter[Any] = Counter()

    def took(self, stream: Any) -> None:
        self.chunks += 1
        self.by_stream[stream] += 1

    async def reached(self, chunks: int, *, streams: int = 1) -> None:
        """So many chunks in all, and at least one of so many streams."""
        await wait_until(
            lambda: self.chunks >= chunks and len(self.by_stream) >= streams,
            description=f"{chunks} chunks of {streams} streams",
            timeout=120,
            every=0.005,
        )


async def watched(
    stack: Stack, body: dict[str, Any], progress: Progress, stream: Any = 0, path: str = CHAT
) -> Streamed:
    """Reads a stream to its end; `progress` counts it under the name `stream`."""
    async with (
        asyncio.timeout(GOES_ON_WITHIN_S) as timeout,
        httpx2.AsyncClient(base_url=stack.url, timeout=90) as http,
        http.stream("POST", path, json={**body, "stream": True}) as response,
    ):
        streamed = Streamed(response.status_code)
        async for line in response.aiter_lines():
            streamed.take(line)
            if line.startswith("data: {"):
                progress.took(stream)
                timeout.reschedule(asyncio.get_running_loop().time() + GOES_ON_WITHIN_S)
        return streamed


def texts(number: int) -> str:
    """A prompt that no other number has."""
    return f"a{number} b{number} c{number} d{number} e{number}"


async def check(stack: Stack, number: int, tokens: int, progress: Progress | None = None) -> None:
    """One stream from its first to its last token, exact."""
    body = chat(texts(number), max_tokens=tokens, stream_options={"include_usage": True})
    assert_exact(await watched(stack, body, progress or Progress(), number), number, tokens)


def assert_exact(streamed: Streamed, number: int, tokens: int) -> None:
    assert streamed.error is None
    assert streamed.text() == cycle(texts(number), tokens)
    assert streamed.finish_reasons == ["length"]
    assert streamed.done
    assert streamed.chunks[-1]["usage"]["prompt_tokens"] == 5
    assert streamed.chunks[-1]["usage"]["completion_tokens"] == tokens


async def rows(stack: Stack, count: int, timeout: float = 20) -> list[dict[str, Any]]:
    """The registry, once it has so many workers."""

    async def enough() -> list[dict[str, Any]] | None:
        found = await stack.registry()
        return found if len(found) == count else None

    found: list[dict[str, Any]] = await wait_until(enough, description=f"{count} workers", timeout=timeout)
    return found


async def used(stack: Stack, slots: int) -> bool:
    return sum(row["slots_used"] for row in await stack.registry()) == slots


async def shared_by(stack: Stack, workers: int, slots: int) -> None:
    """Waits until so many workers run something, so many streams in all."""

    async def so() -> bool:
        found = [row["slots_used"] for row in await stack.registry()]
        return sum(count > 0 for count in found) == workers and sum(found) == slots

    await wait_until(so, description=f"{workers} workers share {slots} streams")


async def metric(stack: Stack, name: str, **labels: str) -> float:
    """The sum over all samples of a counter that carry these labels."""
    async with httpx2.AsyncClient(base_url=stack.url, timeout=20) as http:
        text = (await http.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == f"tokenbus_{name}" and labels.items() <= s.labels.items())


async def redelivered(stack: Stack, **labels: str) -> float:
    return await metric(stack, "job_redelivered_total", **labels)


async def status(stack: Stack, path: str) -> int:
    async with httpx2.AsyncClient(base_url=stack.url, timeout=20) as http:
        return (await http.get(path)).status_code
