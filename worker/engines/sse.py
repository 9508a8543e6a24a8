"""Server-sent events, as far as engines behind HTTP send them."""

from collections.abc import AsyncIterator

import httpx2

LONGEST = 16 * 2**20  # bytes of a line


class LineTooLongError(Exception):
    """It is not what a server sends that means well."""


async def events(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The data of each event. The library's own line iterator also splits inside JSON, at U+2028 and its like. Raises
    LineTooLongError."""
    line: list[bytes] = []
    size = 0
    async for piece in response.aiter_bytes():
        first, *others = piece.split(b"\n")
        line.append(first)
        size += len(first)
        if size > LONGEST:
            raise LineTooLongError(f"a line of more than {LONGEST} bytes")
        for following in others:
            if (whole := b"".join(line)).startswith(b"data:"):
                yield whole.removeprefix(b"data:").strip()
            line, size = [following], len(following)
