"""What is known of a request besides what its body says: its id, its deadline, whether it may be a retry."""

import math
import re
import time
from dataclasses import dataclass, field

from shared.errors import InvalidRequest

OVERDUE = "The request took longer than its deadline allows."
TIMEOUT_HEADER = "x-request-timeout"
RETRIES_HEADER = "x-stainless-retry-count"  # of OpenAI's and other libraries
_NUMBER = re.compile(r"[0-9.eE+-]{1,32}")  # float() takes underscores and "inf" as well


@dataclass(slots=True)
class Asked:
    """What is known of a request besides what its body says. Times are time.monotonic()'s."""

    hex: str  # the id that all its names are made from
    traceparent: str | None = None  # W3C's
    own_id: str | None = None  # the client's x-request-id, if it sent a sound one
    timeout: str | None = None  # x-request-timeout as it was sent
    first_try: bool = False  # the client's library says that this is no retry
    arrived_at: float = field(default_factory=time.monotonic)
    deadline: float = math.inf  # see `end_within`
    model: str = ""  # that it goes to, by name
    body: int = 0  # its hash
    size: int = 0  # of the body, in bytes
    recalled: int = 0  # of it, what was not sent: stored items that it goes on from

    @property
    def request_id(self) -> str:
        return self.own_id or f"req-{self.hex}"

    @property
    def known_by(self) -> int | None:
        """By which a retry is recognised."""
        return None if self.first_try else self.body

    def end_within(self, longest: float) -> None:
        """Sets the deadline: the client's own, but `longest` seconds at most. Raises InvalidRequest."""
        self.deadline = self.arrived_at + min(self._seconds(), longest)

    def _seconds(self) -> float:
        if self.timeout is None:
            return math.inf
        try:
            seconds = float(self.timeout) if _NUMBER.fullmatch(self.timeout) else 0.0
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < math.inf:
            raise InvalidRequest(
                f"Invalid value for the header '{TIMEOUT_HEADER}': it must be a positive number of seconds.",
                param=TIMEOUT_HEADER,
            )
        return seconds
