"""What passes between the parent of several gateway processes and each of them."""

from dataclasses import dataclass
from pathlib import Path

from gateway.settings import GatewaySettings

READY = b"ready\n"  # from the child, once it is on the bus; any other line is why it cannot start


@dataclass(frozen=True, slots=True)
class Orders:
    """To the child, pickled. `number` tells the processes that run at one time apart; a successor gets it again."""

    settings: GatewaySettings
    number: int
    listener: int  # an open file descriptor
    metrics: Path  # folder
