"""The tutorial's three programs run unchanged but for base_url and the model's name."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import CHAT
from tests.processes import ROOT, Stack


class Program:
    """One of them, from its start on."""

    def __init__(self, stack: Stack, program: str, model: str, typed: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.article", program, f"{stack.url}/v1", model],
            cwd=ROOT,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._typed = typed

    def said(self) -> str:
        """All that it has printed when it ends."""
        try:
            printed, errors = self._process.communicate(self._typed, timeout=180)
        finally:
            self.end()
        assert self._process.returncode == 0, errors
        assert "请求失败" not in printed
        return printed

    def end(self) -> None:
        with self._process as process:
            process.kill()


@pytest.fixture(scope="module")
def programs(model_stack: Stack) -> Iterator[dict[str, Program]]:
    """All three at once: the model answers them together."""
    typed = "Answer with one word: hi\nhistory\nreset\nhistory\nquit\n"
    programs = {
        "call": Program(model_stack, "call", CHAT),
        "stream": Program(model_stack, "stream", "smol"),
        "talk": Program(model_stack, "talk", CHAT, typed),
    }
    yield programs
    for program in programs.values():
        program.end()


@pytest.mark.model
@pytest.mark.parametrize("program", ["call", "stream"])
def test_an_answer_is_printed(programs: dict[str, Program], program: str) -> None:
    assert len(programs[program].said().strip()) > 10


@pytest.mark.model
def test_the_conversation_remembers_and_resets(programs: dict[str, Program]) -> None:
    said = programs["talk"].said()
    assert said.count("[USER]: Answer with one word: hi") == 1
    assert said.count("[ASSISTANT]: ") == 1
    assert said.count("[SYSTEM]: ") == 2
    assert "会话已重置。" in said
    assert said.rstrip().endswith("对话结束。")


async def test_the_conversation_keeps_its_last_eight_turns(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker("--model-names", "echo", "--max-model-len", "20000")
    await stack.models("echo")
    turns = "".join(f"turn{number}\n" for number in range(10))
    said = await asyncio.to_thread(Program(stack, "talk", "echo", turns + "history\nquit\n").said)
    assert "AI: turn9 turn9" in said
    history = [line for line in said.splitlines() if line.startswith(("[USER]", "[ASSISTANT]"))]
    assert len(history) <= 16
