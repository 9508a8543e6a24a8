"""When a missing lease means a death: not for one lease after Redis was away, since nobody could renew them then."""

import time

from shared.queue import LEASE_MS

LOOK_GAP_S = 1.5  # more between two looks means that Redis was away, be it without an error (stopped, a dead link)


class Patience:
    """Told of every look at leases by whoever looks, at least twice a second."""

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self.back_at = float("-inf")  # when Redis was first seen to be back, the last time

    def missed(self) -> None:
        """A look got no answer, or there was none yet."""
        self._looked_at = float("-inf")

    def looked(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > LOOK_GAP_S:
            self.back_at = now
        self._looked_at = now

    @property
    def is_over(self) -> bool:
        """Whether the missing may be judged."""
        now = time.monotonic()
        return now - self._looked_at <= LOOK_GAP_S and now - self.back_at >= LEASE_MS / 1000
