"""What a request says besides its body."""

import math
import re
import time
from dataclasses import dataclass, field, replace

from shared.errors import InvalidRequest

TIMEOUT_HEADER = "x-request-timeout"
_NUMBER = re.compile(r"[0-9.eE+-]{1,32}")  # float() takes underscores and "inf" as well


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request besides its body: the id that all its names are made from, its W3C traceparent, its
    x-request-timeout as it was sent. Times are time.monotonic()'s; there is no deadline before `within`."""

    hex: str
    traceparent: str | None = None
    timeout: str | None = None
    arrived_at: float = field(default_factory=time.monotonic)
    deadline: float = math.inf

    def within(self, longest: float) -> "Asked":
        """With its deadline: the client's own, but `longest` seconds at most. Raises InvalidRequest."""
        return replace(self, deadline=self.arrived_at + min(self._seconds(), longest))

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
