"""What passes between the parent of several gateway processes and each of them."""

from dataclasses import dataclass
from pathlib import Path

from gateway.settings import GatewaySettings

# From the child, a line each; any other is why it cannot start.
READY = b"ready\n"  # it is on the bus
LEAVING = b"leaving\n"  # it was ready, and accepts nothing more


@dataclass(frozen=True, slots=True)
class Orders:
    """To the child, pickled. `number` tells the processes that run at one time apart; it is given again."""

    settings: GatewaySettings
    number: int
    listener: int  # an open file descriptor
    metrics: Path  # folder
