"""The load generator's reading of replies: as they are cut by the network, coalesced by servers, and broken."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from bench.loadgen import Load, parse, request_to
from bench.reply import Reply
from bench.report import CUT, Sample, Window, summarise
from bench.usage import Meter

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"one"},"finish_reason":null}],"usage":null}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":64,"total_tokens":67}}\n\n'
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def streamed(endpoint: str = "chat") -> Reply:
    return Reply(streamed=True, endpoint=endpoint)


def feed(reply: Reply, *reads: bytes) -> bool:
    """The n-th read comes at n s; whether the last one completed the reply."""
    return [reply.feed(data, float(at)) for at, data in enumerate(reads)][-1]


def test_first_content_is_the_first_text_and_not_the_role() -> None:
    reply = streamed()
    assert feed(reply, HEAD, chunk(ROLE), chunk(TEXT), chunk(TEXT), chunk(FINISH) + chunk(DONE) + LAST)
    assert reply.arrivals == [(2.0, 1), (3.0, 1)]
    assert reply.failure() is None


def test_events_that_come_together_are_one_arrival() -> None:
    reply = streamed()
    feed(reply, HEAD + chunk(ROLE + TEXT + TEXT) + chunk(TEXT), chunk(TEXT) + chunk(DONE) + LAST)
    assert reply.arrivals == [(0.0, 3), (1.0, 1)]
    assert reply.contents == 4


def test_a_reply_may_be_cut_anywhere() -> None:
    whole = HEAD + chunk(ROLE) + chunk(TEXT + TEXT[:20]) + chunk(TEXT[20:]) + chunk(USAGE + DONE) + LAST
    for size in (1, 2, 3, 7, 50, 333):
        reply = streamed()
        assert feed(reply, *(whole[start : start + size] for start in range(0, len(whole), size)))
        assert (reply.contents, reply.tokens, reply.failure()) == (2, 64, None)


def test_lines_may_end_with_a_carriage_return_and_bodies_with_the_connection() -> None:
    reply = streamed()
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    feed(reply, head, TEXT.replace(b"\n", b"\r\n"), DONE.replace(b"\n", b"\r\n"))
    reply.closed(3.0)
    assert (reply.contents, reply.failure(), reply.keep_alive) == (1, None, False)


def test_text_of_completions_is_content_too() -> None:
    reply = streamed("completions")
    feed(reply, HEAD, chunk(b'data: {"choices":[{"index":0,"text": "one"}]}\n\n' + DONE) + LAST)
    assert (reply.contents, reply.failure()) == (1, None)


@pytest.mark.parametrize(
    "said", [b'{"error":{"message":"gone"}}', b'{"text": "**NETWORK ERROR**", "error_code": 50004}']
)
def test_an_error_within_a_stream_is_seen(said: bytes) -> None:
    reply = streamed()
    feed(reply, HEAD, chunk(TEXT), chunk(b"data: " + said + b"\n\n" + DONE) + LAST)
    assert reply.failure() == ("stream_error", said.decode())


def test_a_stream_without_an_end_or_without_content_is_no_success() -> None:
    silent, endless, cut = streamed(), streamed(), streamed()
    feed(silent, HEAD, chunk(ROLE + DONE) + LAST)
    feed(endless, HEAD, chunk(TEXT) + LAST)
    feed(cut, HEAD, chunk(TEXT))
    cut.closed(2.0)
    failures = [reply.failure() for reply in (silent, endless, cut)]
    assert [failure and failure[0] for failure in failures] == ["no_content", "no_done", "premature_close"]


def test_a_status_is_an_error_with_what_was_said() -> None:
    reply = streamed()
    head = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 21\r\n\r\n"
    assert feed(reply, head, b'{"error":{"code":"x"}', b"")
    assert reply.failure() == ("http_429", '{"error":{"code":"x"}')


def test_a_plain_reply_counts_by_its_usage() -> None:
    body = b'{"choices":[{"message":{"role":"assistant","content":"one"}}],"usage":{"completion_tokens": 7}}'
    reply = Reply(streamed=False, endpoint="chat")
    assert feed(reply, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:9], body[9:])
    assert (reply.arrivals, reply.tokens, reply.failure()) == ([(1.0, 1)], 7, None)


def test_rates_count_what_came_within_the_window_and_times_also_what_came_later() -> None:
    window = Window()
    window.begin(10.0, Meter({}), 0.0)
    window.end(12.0, Meter({}), 0.5)
    samples = [
        Sample(9.0, 11.0, [(9.5, 1), (10.5, 3)], 8, None),  # two tokens an event, three events in the window
        Sample(11.0, 15.0, [(14.0, 1)], 1, None),
        Sample(11.0, 11.5, [], None, ("http_500", "no")),
        Sample(11.5, 20.0, [], None, (CUT, "")),
        Sample(12.5, 13.0, [(12.6, 1)], 1, None),
    ]
    said = summarise(samples, Counter(connect=1), window)
    assert (said["requests"], said["ended"], said["events_per_s"], said["tokens_per_s"]) == (4, 1, 1.5, 3.0)
    assert said["first_content"]["p50"] == 3000
    assert said["first_content"]["max"] == 8500
    assert said["gap"]["max"] == 1000
    assert (said["errors"], said["cut"]) == ({"connect": 1, "http_500": 1}, 1)


def test_a_request_asks_for_usage_and_closes_its_connection() -> None:
    options = parse(["--base-url", "http://h:1/v1", "--model", "m", "--seconds", "1", "--stream", "--usage"])
    request = request_to(urlsplit(options.base_url), options)
    assert request.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: h:1\r\n")
    assert b"Connection: close\r\n" in request
    assert b'"include_usage": true' in request


async def served(handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], *flags: str) -> Load:
    """The load that was put on a server which answers like this."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        load = Load(parse(["--base-url", f"http://127.0.0.1:{port}", "--model", "m", *flags]))
        await load.run(Meter({}))
    return load


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Every request on the connection, until the client leaves."""
    with suppress(asyncio.IncompleteReadError, ConnectionResetError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            writer.write(HEAD + chunk(ROLE + TEXT) + chunk(USAGE + DONE) + LAST)
    writer.close()


async def test_a_server_that_hangs_up_is_counted_and_not_waited_for() -> None:
    load = await served(hang_up, "--requests", "8", "--concurrency", "4", "--stream")
    said = summarise(load.samples, load.refused, load.window)
    assert (said["errors"], said["ended"]) == ({"premature_close": 8}, 0)


@pytest.mark.parametrize("flags", [[], ["--keep-alive"], ["--rate", "2000"]])
async def test_as_many_requests_are_made_as_were_asked_for(flags: list[str]) -> None:
    load = await served(answer, "--requests", "30", "--concurrency", "3", "--stream", "--usage", *flags)
    said = summarise(load.samples, load.refused, load.window)
    assert (said["requests"], said["errors"], said["events"], said["tokens"]) == (30, {}, 30, 1920)


async def test_what_is_open_long_after_the_end_is_cut_and_no_error() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    load = await served(say_nothing, "--seconds", "0.05", "--concurrency", "2", "--stream", "--drain", "0")
    said = summarise(load.samples, load.refused, load.window)
    assert (said["cut"], said["errors"], said["requests_per_s"]) == (2, {}, 0)
