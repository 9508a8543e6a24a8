"""HTTP itself, spoken wrongly or unusually: every request is answered in its turn, what cannot be read with a 400."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.wire import Connection, chat, cycle
from tests.processes import Stack

CHAT = "/v1/chat/completions"
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
GARBAGE = b"\x00garbage\r\n\r\n"


def request(text: str = "a b", head: str = "", path: str = CHAT, version: str = "1.1", **options: Any) -> bytes:
    body = json.dumps(chat(text, max_tokens=2, **options))
    return begun(f"Content-Length: {len(body)}\r\n{head}", path, version) + body.encode()


def begun(head: str, path: str = CHAT, version: str = "1.1") -> bytes:
    return f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n{head}\r\n".encode()


def chunked(*chunks: bytes) -> bytes:
    return begun("Transfer-Encoding: chunked\r\n") + b"".join(chunks)


@dataclass
class Answer:
    status: int
    head: dict[str, str]
    body: bytes

    @property
    def says(self) -> Any:
        body = json.loads(self.body)
        return body["error"]["message"] if "error" in body else body["choices"][0]["message"]["content"]


async def read(connection: Connection) -> Answer:
    """The next answer with a length."""
    first, *lines = (await connection.until(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    head = dict(line.split(": ", 1) for line in lines)
    body = await connection.reader.readexactly(int(head.get("content-length", 0)))
    return Answer(int(first.split()[1]), head, body)


async def exchange(stack: Stack, *sent: bytes, answers: int = 1) -> tuple[list[Answer], Connection]:
    connection = await Connection.open(stack)
    for part in sent:
        connection.writer.write(part)
    return [await read(connection) for _ in range(answers)], connection


async def ends(connection: Connection) -> bool:
    """The server says nothing more and closes."""
    rest = await connection.reader.read()
    await connection.close()
    return rest == b""


@pytest.mark.parametrize(
    "unreadable",
    [
        GARBAGE, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT host:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        begun("Content-Length: -1\r\n"), begun("Content-Length: 3\r\nContent-Length: 4\r\n"),
        begun("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), begun("Transfer-Encoding: gzip\r\n") + b"abc",
        chunked(b"zz\r\n"), chunked(b"3\r\nabc\r\n", b"zz\r\n"), chunked(b"f" * 17 + b"\r\n"),
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n", "GET /é HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    ],
    ids=lambda sent: repr(sent[:20] + sent[-20:]),
)  # fmt: skip
async def test_what_cannot_be_read_is_a_400_in_json(echo_stack: Stack, unreadable: bytes) -> None:
    [answer], connection = await exchange(echo_stack, unreadable)
    assert (answer.status, answer.head["content-type"]) == (400, "application/json")
    assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
    assert await ends(connection)


@pytest.mark.parametrize("unreadable", [GARBAGE, chunked(b"zz\r\n"), begun("X: " + "y" * 10 + "\x00")], ids=repr)
@pytest.mark.parametrize("before", [1, 3])
async def test_what_came_before_it_is_answered_first(echo_stack: Stack, before: int, unreadable: bytes) -> None:
    sent = [request(f"a{number}") for number in range(before)]
    answers, connection = await exchange(echo_stack, b"".join(sent) + unreadable, answers=before + 1)
    assert [answer.status for answer in answers] == [200] * before + [400]
    assert [answer.says for answer in answers[:-1]] == [cycle(f"a{number}", 2) for number in range(before)]
    assert await ends(connection)


async def test_a_stream_is_not_cut_off_by_what_follows_it(echo_stack: Stack) -> None:
    connection = await Connection.open(echo_stack)
    connection.writer.write(request(stream=True) + GARBAGE)
    assert b"200 OK" in await connection.until(b"\r\n\r\n")
    assert b"data: [DONE]" in await connection.until(b"0\r\n\r\n")
    assert (await read(connection)).status == 400
    assert await ends(connection)


async def test_a_body_that_breaks_off_after_its_answer_gets_no_second_one(echo_stack: Stack) -> None:
    too_large = chunked(b"200000\r\n" + b" " * 0x200000 + b"\r\n")
    [answer], connection = await exchange(echo_stack, too_large)
    assert answer.status == 413
    connection.writer.write(b"zz\r\n")
    assert await ends(connection)


async def test_pipelined_requests_are_answered_in_their_order(echo_stack: Stack) -> None:
    texts = [f"n{number} b" for number in range(40)]
    sent = b"".join(request(text) for text in texts)
    answers, connection = await exchange(echo_stack, sent, answers=len(texts))
    assert [answer.says for answer in answers] == texts
    await connection.close()


async def test_a_bad_request_in_a_pipeline_leaves_the_others_alone(echo_stack: Stack) -> None:
    sent = request("a") + begun("Content-Length: 1\r\n") + b"{" + GET + request("b")
    answers, connection = await exchange(echo_stack, sent, answers=4)
    assert [answer.status for answer in answers] == [200, 400, 200, 200]
    await connection.close()


async def test_a_body_is_asked_for_if_its_client_waits_for_that(echo_stack: Stack) -> None:
    sent = request(head="Expect: 100-continue\r\n")
    head, body = sent.split(b"\r\n\r\n")
    connection = await Connection.open(echo_stack)
    connection.writer.write(head + b"\r\n\r\n")
    assert await connection.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.writer.write(body + request("c"))
    assert [(await read(connection)).says for _ in range(2)] == ["a b", "c c"]
    await connection.close()


@pytest.mark.parametrize(
    ("path", "length", "status"), [(CHAT, 2**40, 413), ("/nowhere", 50, 404), ("/v1/models", 50, 405)]
)
async def test_a_body_that_is_refused_unread_is_not_waited_for(
    echo_stack: Stack, path: str, length: int, status: int
) -> None:
    """Its client has not sent it, so the next request must not be taken for it."""
    [answer], connection = await exchange(
        echo_stack, begun(f"Content-Length: {length}\r\nExpect: 100-continue\r\n", path)
    )
    assert (answer.status, answer.head["connection"]) == (status, "close")
    assert await ends(connection)


async def test_a_client_of_http_1_0_gets_no_chunks(echo_stack: Stack) -> None:
    connection = await Connection.open(echo_stack)
    connection.writer.write(request(version="1.0", stream=True))
    head = await connection.until(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    body = await connection.reader.read()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")
    assert all(event.startswith(b"data: ") for event in body.split(b"\n\n")[:-1])
    await connection.close()


async def test_a_client_of_http_1_0_gets_whole_replies_with_their_length(echo_stack: Stack) -> None:
    [answer], connection = await exchange(echo_stack, request(version="1.0"))
    assert (answer.says, answer.head["connection"]) == ("a b", "close")
    assert await ends(connection)


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("sent_apart", [False, True])
async def test_a_request_that_would_rather_speak_another_protocol_is_answered(
    echo_stack: Stack, protocol: str, sent_apart: bool
) -> None:
    """Java's HttpClient asks for HTTP/2 with its first request, whatever its body is."""
    wish = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    head, body = request(head=wish).split(b"\r\n\r\n")
    connection = await Connection.open(echo_stack)
    connection.writer.write(head + b"\r\n\r\n" + body[:10])
    if sent_apart:
        await connection.writer.drain()
    connection.writer.write(body[10:] + request("c") + GET)
    assert [(await read(connection)).says for _ in range(2)] == ["a b", "c c"]
    assert (await read(connection)).status == 200
    await connection.close()
