"""Constraints are looked at before any work: one that cannot be kept is the client's mistake, not a worker's."""

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from shared.grammar import check, constraint
from shared.messages import Structured, encode


class Grammars:
    """Those that were found sound are remembered. A large one takes longer than the event loop may stand still, so all
    are looked at in a thread of their own."""

    REMEMBERED = 10_000

    def __init__(self) -> None:
        self._sound: OrderedDict[bytes, None] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    async def check(self, structured: Structured) -> None:
        """Raises InvalidRequest about its parameter."""
        key = hashlib.blake2b(encode(structured), digest_size=16).digest()
        if key not in self._sound:
            await asyncio.get_running_loop().run_in_executor(self._thread, _check, structured)
            self._sound[key] = None
            if len(self._sound) > self.REMEMBERED:
                self._sound.popitem(last=False)
        self._sound.move_to_end(key)


def _check(structured: Structured) -> None:
    check(constraint(structured, structured.param), structured.param)
