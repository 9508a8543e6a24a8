"""The other end of a connection, as far as a reply needs it."""

from collections.abc import Callable


class Client:
    """ASGI tells that a client left only to whoever waits for it, which takes a task per request."""

    def __init__(self) -> None:
        self._has_left = False
        self._watchers: set[Callable[[], None]] = set()

    def watch(self, leave: Callable[[], None]) -> None:
        """`leave` is called once when the client leaves, or now if it has left."""
        if self._has_left:
            leave()
        else:
            self._watchers.add(leave)

    def unwatch(self, leave: Callable[[], None]) -> None:
        self._watchers.discard(leave)

    def leave(self) -> None:
        self._has_left = True
        watchers, self._watchers = self._watchers, set()
        for leave in watchers:
            leave()
