"""What the user sees while a stack starts and stops."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.status import Status


class Progress:
    """What is being waited for: a spinner on a terminal, elsewhere a line whenever it changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._shown = ""

    def say(self, text: str) -> None:
        with suppress(OSError):  # the terminal may be gone, which is no reason to leave a process behind
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def showing(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        with self._console.status("starting") as self._status:
            yield
        self._status = None

    def waiting_for(self, names: list[str]) -> None:
        text = f"waiting for {', '.join(names)}"
        if names and text != self._shown:
            self._shown = text
            if self._status:
                self._status.update(text)
            else:
                self.say(text)
