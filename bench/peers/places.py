"""Where peers keep what they make: virtual environments, logs, configurations."""

import socket
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PLACE = CHECKOUT / ".bench"  # git ignores it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
