"""The `tokenbus` command as people run it, over the Redis of a stack."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from tests.processes import ROOT, Stack


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def refusal(self) -> str:
        """The one line of a command that cannot do what was asked."""
        assert (self.code, self.out) == (2, ""), self
        assert self.err.startswith("tokenbus: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err


class Command:
    """One `tokenbus WORDS...` that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdout is not None
        self.stdout = process.stdout

    @classmethod
    async def start(cls, stack: Stack, *words: str) -> "Command":
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TOKENBUS_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli", *words,
            cwd=ROOT, env=kept | {"REDIS_URL": stack.redis_url, "COLUMNS": "120"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return cls(process)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    async def end(self) -> Said:
        try:
            async with asyncio.timeout(60):
                out, err = await self.process.communicate()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise
        assert "Traceback" not in err.decode(), err.decode()
        return Said(self.process.returncode or 0, out.decode(), err.decode())


async def tokenbus(stack: Stack, *words: str) -> Said:
    return await (await Command.start(stack, *words)).end()
