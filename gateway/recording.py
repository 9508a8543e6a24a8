"""What a gateway keeps of a durable request that it owns, or follows in its log."""

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.inflight import Mailbox, Update
from shared.errors import ShuttingDown, TokenbusError
from shared.messages import Delta, End, FinishReason, Job, Progress, Usage


class Recording(Mailbox):
    """Keeps what each step made, for good and apart, since the events of its stream are numbered by them. The end is
    told to `on_end` first, and to its client once it is released: by then it is stored, and may be asked for."""

    MOST = 500  # pieces at a time: of a long response that is told again all are there at once

    def __init__(
        self,
        response: dict[str, Any],
        items: list[dict[str, Any]],
        on_end: "Callable[[Recording], None]",
        on_move: "Callable[[Recording], None]",
        job: Job | None = None,
    ) -> None:
        """response: as it was at the beginning; items: its input; job: what makes it, as it was stored with it."""
        super().__init__()
        self.id: str = response["id"]
        self.response = response
        self.items = items
        self.job = job
        self.pieces: list[Update] = []
        self.end: End | None = None
        self.is_owned = True  # by this gateway
        self.released = asyncio.Event()
        self._on_end = on_end
        self._on_move = on_move
        self._taken = 0  # pieces
        self._told = False

    def add(self, index: int, made: Progress | Delta) -> None:
        piece = Update(index=index)
        piece.add(made)
        self.pieces.append(piece)
        self.wake()

    def finish(self, index: int, reason: FinishReason, usage: Usage, stop: str | None = None) -> None:
        self.ended(End(reason=reason, usage=usage, stop=stop))

    def fail(self, error: TokenbusError) -> None:
        if isinstance(error, ShuttingDown):  # this gateway is, and another one goes on
            super().fail(error)
        else:
            self.ended(End(code=error.code, message=error.message, param=error.param))

    def ended(self, end: End) -> None:
        """The first end counts."""
        if self.end is None:
            self.end = end
            if self.is_owned:
                self._on_end(self)
            else:
                self.release()

    def moved(self) -> None:
        """Another gateway answers for it from now on: what follows is in the log."""
        self.is_owned = False
        self._on_move(self)

    def release(self) -> None:
        """Its client may know the end."""
        if self.end is None or self.released.is_set():
            return
        self.released.set()
        if self.end.code is not None:
            super().fail(TokenbusError.from_code(self.end.code, self.end.message, self.end.param))
        self.wake()

    async def get(self) -> list[Update]:
        if len(self.pieces) - self._taken > self.MOST:
            await asyncio.sleep(0)  # others have their turn: there is nothing to wait for
        return await super().get()

    def _take(self) -> list[Update]:
        updates = self.pieces[self._taken : self._taken + self.MOST]
        self._taken += len(updates)
        if self._taken < len(self.pieces):
            return updates
        if self.released.is_set() and not self._told and self.end is not None and self.end.usage is not None:
            self._told = True
            updates.append(Update(index=0, finish_reason=self.end.reason, stop=self.end.stop, usage=self.end.usage))
        return updates
