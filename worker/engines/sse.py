"""Server-sent events, as far as engines behind HTTP send them."""

from collections.abc import AsyncIterator

import httpx2


async def events(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The data of each event. The library's own line iterator also splits inside JSON, at U+2028 and its like."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
