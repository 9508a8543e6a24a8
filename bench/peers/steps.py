"""An engine's steps without an engine: one token for every open request a step."""

import asyncio
from collections.abc import Callable

TOKEN = " tokens"  # the text of each


class Steps:
    """`every` s apart, or 0: as fast as the loop goes round. A step that comes late moves those after it."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._open: dict[object, Callable[[], bool]] = {}
        self._next = 0.0
        self._timer: asyncio.Handle | None = None

    def add(self, key: object, advance: Callable[[], bool]) -> None:
        """`advance` is called once a step until it returns False."""
        self._open[key] = advance
        self._schedule()

    def discard(self, key: object) -> None:
        self._open.pop(key, None)

    def _schedule(self) -> None:
        if self._timer is not None or not self._open:
            return
        loop = asyncio.get_running_loop()
        if self._every:
            self._timer = loop.call_at(self._next, self._step)
        else:
            self._timer = loop.call_soon(self._step)

    def _step(self) -> None:
        self._timer = None
        self._next = max(self._next, asyncio.get_running_loop().time() - self._every) + self._every
        for key, advance in list(self._open.items()):
            if not advance():
                self.discard(key)
        self._schedule()
