"""One HTTP/1.1 reply as it comes off a socket: headers, chunks, server-sent events, and when its content came.

It shares the machine with what it measures, so that it only looks for bytes and decodes nothing.
"""

import re

KEYS = {"chat": b'"content":', "completions": b'"text":'}
COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s?(\d+)')
KEPT_FOR_MESSAGE = 300  # bytes of an error


class Reply:
    """`feed` takes what was read, with the time when it could be read; True once the reply is complete.

    An arrival is a read that brought content: events that came together are one arrival, so that a server which
    coalesces gains no gap of 0.
    """

    __slots__ = (
        "_body",
        "_chunk_left",
        "_chunked",
        "_head",
        "_key",
        "_length",
        "_line",
        "_raw",
        "_streamed",
        "arrivals",
        "contents",
        "done",
        "error",
        "keep_alive",
        "status",
        "tokens",
        "went_wrong",
    )

    def __init__(self, *, streamed: bool, endpoint: str) -> None:
        self._streamed = streamed
        self._key = KEYS[endpoint]
        self._head: bytes | None = b""  # None once it was parsed
        self._raw = b""  # of a chunk's frame that is not complete
        self._chunk_left = 0  # of the current chunk, with its CRLF
        self._line = b""  # of the stream, not complete
        self._body = b""  # of a plain reply, or of an error
        self._chunked = False
        self._length: int | None = None
        self.status = 0
        self.keep_alive = True
        self.arrivals: list[tuple[float, int]] = []  # when, and how many events with content
        self.contents = 0
        self.tokens: int | None = None  # by the reply's own usage
        self.done = False  # [DONE] came
        self.error = b""  # an error event within the stream
        self.went_wrong = False

    def feed(self, data: bytes, at: float) -> bool:
        if self._head is not None:
            rest = self._read_head(self._head + data)
            if rest is None:
                return False
            data = rest
        if self._chunked:
            ended, data = self._dechunk(data)
        else:
            ended = self._count_down(len(data))
        if data:
            if self._streamed and self.status == 200:
                self._read_events(data, at)
            else:
                self._body += data
        if ended:
            self._complete(at)
        return ended

    def closed(self, at: float) -> None:
        """The server closed the connection: the end of a reply without a length, else a failure."""
        if self._head is None and not self._chunked and self._length is None:
            self._complete(at)
        else:
            self.went_wrong = True

    def failure(self) -> tuple[str, str] | None:
        """Of a reply that is over: premature_close, http_STATUS, stream_error, no_done or no_content; and its text."""
        said = (self.error or self._body)[:KEPT_FOR_MESSAGE].decode(errors="replace")
        if self.went_wrong:
            return "premature_close", f"status {self.status}, {self.contents} events"
        if self.status != 200:
            return f"http_{self.status}", said
        if self.error:
            return "stream_error", said
        if self._streamed and not self.done:
            return "no_done", f"{self.contents} events"
        return None if self.contents else ("no_content", said)

    def _read_head(self, data: bytes) -> bytes | None:
        """What follows the head; None while it is not complete."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._head = data
            return None
        self._head = None
        status, *lines = data[:end].split(b"\r\n")
        self.status = int(status[9:12])
        for line in lines:
            name, _, value = line.partition(b":")
            self._note_header(name.lower(), value.strip().lower())
        return data[end + 4 :]

    def _note_header(self, name: bytes, value: bytes) -> None:
        if name == b"transfer-encoding":
            self._chunked = b"chunked" in value
        elif name == b"content-length":
            self._length = int(value)
        elif name == b"connection" and value == b"close":
            self.keep_alive = False

    def _count_down(self, size: int) -> bool:
        if self._length is None:
            return False
        self._length -= size
        return self._length <= 0

    def _dechunk(self, data: bytes) -> tuple[bool, bytes]:
        """Whether the last chunk came, and the payload."""
        if not self._chunk_left and not self._raw:
            at = data.find(b"\r\n", 0, 12)
            if at > 0 and (size := int(data[:at], 16)) and at + size + 4 == len(data):
                return False, data[at + 2 : -2]  # one whole chunk in one read, as servers mostly write
        return self._dechunk_any(self._raw + data)

    def _dechunk_any(self, data: bytes) -> tuple[bool, bytes]:
        position, parts = 0, []
        while position < len(data):
            if self._chunk_left:
                taken = data[position : position + self._chunk_left]
                parts.append(taken[: max(0, self._chunk_left - 2)])  # without the CRLF that ends it
                self._chunk_left -= len(taken)
                position += len(taken)
                continue
            at = data.find(b"\r\n", position)
            if at < 0:
                break
            size = int(data[position:at].split(b";")[0], 16)
            if size == 0:
                if len(data) < at + 4:
                    break
                return True, b"".join(parts)
            position, self._chunk_left = at + 2, size + 2
        self._raw = data[position:]
        return False, b"".join(parts)

    def _read_events(self, data: bytes, at: float) -> None:
        lines = (self._line + data).split(b"\n")
        self._line = lines.pop()
        contents, key = 0, self._key
        for line in lines:
            if line.startswith(b"data:"):
                place = line.find(key)
                if place >= 0 and _is_text(line, place + len(key)):
                    contents += 1
                else:
                    self._read_other(line)
        if contents:
            self.contents += contents
            self.arrivals.append((at, contents))

    def _read_other(self, line: bytes) -> None:
        """An event without content: the first with a role, the finish, the usage, an error, the end."""
        if line.startswith(b"[DONE]", 6) or line.startswith(b"[DONE]", 5):
            self.done = True
        elif b'"completion_tokens"' in line:
            self._read_usage(line)
        elif b'"choices"' not in line and b'"error' in line:  # {"error": ...}, or FastChat's {"text", "error_code"}
            self.error = line[5:].strip()

    def _read_usage(self, text: bytes) -> None:
        if found := COMPLETION_TOKENS.search(text):
            self.tokens = int(found[1])

    def _complete(self, at: float) -> None:
        if self._streamed or self.status != 200:
            return
        self._read_usage(self._body)
        place = self._body.find(self._key)
        if place >= 0 and _is_text(self._body, place + len(self._key)):
            self.contents = 1
            self.arrivals.append((at, 1))


def _is_text(data: bytes, place: int) -> bool:
    """A string that is not empty stands at `place`: neither "" nor null."""
    if data[place : place + 1] == b" ":
        place += 1
    return data[place : place + 1] == b'"' and data[place + 1 : place + 2] != b'"'
