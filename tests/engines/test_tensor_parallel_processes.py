"""A worker of several processes on the bus: whichever of them dies, none is left, and what it was asked goes on."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import pytest_asyncio

from tests.conftest import wait_until
from tests.engines.driving import SaveModel
from tests.processes import Process, Stack
from worker.engines.tensor_parallel import end_with_the_first

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAMS = 6
TOKENS = 300


@pytest_asyncio.fixture(loop_scope="module")
async def stack(valkey_url: str, tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(valkey_url, tmp_path)
    await stack.gateway()
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def flags(save_model: SaveModel) -> tuple[str, ...]:
    path = save_model("llama", max_position_embeddings=1024)
    return "--model-path", str(path), "--model-names", "tiny", "--device", "cpu", "--dtype", "float32", "--threads", "1"


def others(worker: Process) -> list[psutil.Process]:
    """Those that compute with it, without Python's own helper."""
    children = psutil.Process(worker.pid).children(recursive=True)
    return [one for one in children if "resource_tracker" not in " ".join(one.cmdline())]


async def computes(stack: Stack, slots: int) -> bool:
    """The worker with so many slots."""
    return any(row["slots_used"] for row in await stack.registry() if row["slots"] == slots)


async def replies(url: str) -> list[str]:
    async def ask(number: int) -> str:
        body: dict[str, Any] = {"model": "tiny", "prompt": [5, 7 + number], "max_tokens": TOKENS}
        async with httpx2.AsyncClient(timeout=100) as http:
            answer = await http.post(f"{url}/v1/completions", json=body | {"temperature": 0, "ignore_eos": True})
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        assert (answer.json()["usage"]["completion_tokens"], choice["finish_reason"]) == (TOKENS, "length")
        text: str = choice["text"]
        return text

    return await asyncio.gather(*(ask(number) for number in range(STREAMS)))


async def test_when_it_ends_others_go_on(stack: Stack, flags: tuple[str, ...]) -> None:
    """When one part is killed; and when all are told to end, as by Ctrl-C or systemd, which is for the first alone."""
    alone = await stack.worker(*flags, "--limit-worker-concurrency", "2")
    expected = await replies(stack.url)
    for is_ordered in (False, True):
        several = await stack.worker(*flags, "--limit-worker-concurrency", "4", "--tensor-parallel-size", "2")
        parts = others(several)
        assert len(parts) == 1
        asking = asyncio.create_task(replies(stack.url))
        await wait_until(lambda: computes(stack, 4), description="it computes some of them")
        if is_ordered:
            for process in (*parts, psutil.Process(several.pid)):
                process.terminate()
        else:
            parts[0].kill()
        assert await asyncio.to_thread(several.wait) == (0 if is_ordered else 1), several.said()
        assert ("a process of this model has ended: rank-1 (-9)" in several.said()) is not is_ordered
        assert ("CRITICAL" in several.said()) is not is_ordered
        assert psutil.wait_procs(parts, timeout=10)[1] == []
        assert await asking == expected
    assert not alone.ended


async def test_parts_do_not_outlive_the_first() -> None:
    """Not even one that is busy with something else, and hears nothing of anybody."""
    code = f"""if True:
        import multiprocessing
        from {__name__} import linger
        if __name__ == "__main__":
            child = multiprocessing.get_context("spawn").Process(target=linger)
            child.start()
            print(child.pid, flush=True)
            child.join()"""
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert first.stdout is not None
    child = psutil.Process(int(await first.stdout.readline()))
    first.kill()
    await first.wait()
    assert psutil.wait_procs([child], timeout=30)[1] == []


def linger() -> None:
    threading.Thread(target=end_with_the_first, daemon=True).start()
    while True:
        time.sleep(1)
