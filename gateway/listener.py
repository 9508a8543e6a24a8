"""Where a gateway listens, with one process or with several behind the one port."""

import socket
import sys

from shared.errors import StartupError

BACKLOG = 2048


def listen(host: str, port: int, processes: int = 1) -> list[socket.socket]:
    """One listening socket for each process, all on one port; port 0 takes a free one.

    On Linux the kernel spreads new connections evenly over sockets that share a port (SO_REUSEPORT). From one socket
    that all processes accept from, whoever wakes first takes what there is: of bursts of 256 connections one of two
    took up to 255, one of four up to 246, and a stream stays where it was accepted. Where a socket is closed with its
    process, the connections that wait in it are reset; so the parent holds all of them open, and what waited for a
    process that is killed is served by the one that takes its place. Elsewhere SO_REUSEPORT spreads nothing: there all
    share one socket.
    """
    first = _bound(host, port)
    if processes == 1 or sys.platform != "linux":
        return [first] * processes
    # The first one, bound alone, shows that the port is nobody else's: SO_REUSEPORT would let us share it in silence.
    port = first.getsockname()[1]
    first.close()
    return [_bound(host, port, reuse=True) for _ in range(processes)]


def _bound(host: str, port: int, *, reuse: bool = False) -> socket.socket:
    """What is accepted inherits TCP_NODELAY: asyncio does not set it, since these sockets do not name their protocol,
    and each answer on a kept connection would wait 40 ms for the client's delayed acknowledgement."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=reuse)
    except OSError as error:
        raise StartupError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
