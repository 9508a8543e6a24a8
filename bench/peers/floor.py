"""The floor: the gateway's own HTTP server, with the tokens made in its process and no bus at all (`floor_server`)."""

import sys

from bench.peers.peer import Peer
from shared import __version__


class Floor(Peer):
    name = "floor"

    async def launch(self, port: int) -> None:
        self.version = __version__
        command = [sys.executable, "-m", "bench.peers.floor_server", "--port", str(port)]
        await self.run("gateway", "server", [*command, *self.models.values()])
