"""A link between a process and its Redis that can be cut: packets stop, and nobody is told."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit

from tests.conftest import free_port


class Link:
    """A TCP proxy in threads of its own. While it is cut, connections stay open (new ones too) and nothing passes."""

    def __init__(self, redis_url: str) -> None:
        self._target = (urlsplit(redis_url).hostname, urlsplit(redis_url).port)
        self._is_open = threading.Event()
        self._is_open.set()
        self._passes = threading.Event()  # of the connections that are there
        self._passes.set()
        self._forgotten: list[threading.Event] = []
        self._ends: set[socket.socket] = set()
        self._carrying: list[threading.Thread] = []
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}"
        self._server = socket.create_server(("127.0.0.1", port))
        self._accepting = threading.Thread(target=self._accept, name="link", daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        self._is_open.clear()
        self._passes.clear()

    def heal(self) -> None:
        """What was sent meanwhile arrives late."""
        self._passes.set()
        self._is_open.set()

    def reset(self) -> None:
        """The way is free again, but whatever lay between has forgotten every connection, and says so."""
        self._drop_all()
        self.heal()

    def forget(self) -> None:
        """The same, but nobody is told: the connections of before stay open and silent for ever."""
        self._forgotten.append(self._passes)
        self._passes = threading.Event()
        self.heal()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._accepting.join()
        self._server.close()
        self.reset()
        for passes in self._forgotten:
            passes.set()
        for carrying in self._carrying:
            carrying.join()

    def _drop_all(self) -> None:
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                inner = self._server.accept()[0]
                self._ends.add(inner)
                carrying = threading.Thread(target=self._carry, args=(inner,), name="link", daemon=True)
                self._carrying.append(carrying)
                carrying.start()

    def _carry(self, inner: socket.socket) -> None:
        """One connection, until either end closes; then both do."""
        self._is_open.wait()
        passes = self._passes
        with contextlib.suppress(OSError), inner, socket.create_connection(self._target) as outer:
            self._ends.add(outer)
            back = threading.Thread(target=self._pump, args=(outer, inner, passes), name="link", daemon=True)
            back.start()
            self._pump(inner, outer, passes)
            back.join()
            self._ends.discard(outer)
        self._ends.discard(inner)

    def _pump(self, source: socket.socket, sink: socket.socket, passes: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passes.wait()
                sink.sendall(data)
        passes.wait()
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
