"""The tutorial's three programs run unchanged but for base_url and the model's name."""

import asyncio
import os
import subprocess
import sys

import pytest

from tests.e2e.conftest import CHAT
from tests.processes import ROOT, Stack


def run(stack: Stack, program: str, model: str, typed: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.article", program, f"{stack.url}/v1", model],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        input=typed,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "请求失败" not in done.stdout
    return done.stdout


@pytest.mark.model
def test_the_single_call_prints_an_answer(model_stack: Stack) -> None:
    assert len(run(model_stack, "call", CHAT).strip()) > 10


@pytest.mark.model
def test_the_stream_prints_an_answer(model_stack: Stack) -> None:
    assert len(run(model_stack, "stream", "smol").strip()) > 10


@pytest.mark.model
def test_the_conversation_remembers_and_resets(model_stack: Stack) -> None:
    said = run(model_stack, "talk", CHAT, "Answer with one word: hi\nhistory\nreset\nhistory\nquit\n")
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
    said = await asyncio.to_thread(run, stack, "talk", "echo", turns + "history\nquit\n")
    assert "AI: turn9 turn9" in said
    history = [line for line in said.splitlines() if line.startswith(("[USER]", "[ASSISTANT]"))]
    assert len(history) <= 16
