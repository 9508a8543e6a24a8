"""`tokenbus run MODEL`, through a pipe and on a terminal."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.conftest import wait_until
from tests.e2e.up import environment, tokenbus
from tests.processes import Stack


def chat(stack: Stack, typed: str, *flags: str, model: str = "echo") -> subprocess.CompletedProcess[str]:
    command = tokenbus("run", model, "--base-url", f"{stack.url}/v1", *flags)
    return subprocess.run(
        command, input=typed, env=environment(Path("/nowhere")), capture_output=True, text=True, timeout=60, check=False
    )


async def test_a_pipe_gets_answers_and_nothing_else(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker()
    await stack.models("echo")
    done = chat(stack, "one two\n\nthree\n/quit\nnever\n", "--max-tokens", "3")
    assert (done.stdout, done.stderr, done.returncode) == ("one two one\nthree three three\n", "", 0)


async def test_history_system_and_reset(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker()
    await stack.models("echo")
    typed = "a\nb\n/history\n/system be kind\n/system\n/reset\n/history\n/nonsense\n"
    done = chat(stack, typed, "--max-tokens", "1", "--max-history-turns", "1", "--system", "be brief")
    assert done.stdout.splitlines() == [
        "a",
        "b",
        "system: be brief",
        "user: b",
        "assistant: b",
        "be kind",
        "system: be kind",
    ]
    assert done.stderr == "there is no /nonsense; /help lists what there is\n"


async def test_an_unknown_model_is_refused_with_the_names_that_exist(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker("--engine", "echo", "--model-names", "one,two")
    await stack.models("one", "two")
    done = chat(stack, "hi\n", model="three")
    assert (done.stderr, done.returncode) == ("tokenbus: there is no model 'three'; there are: one, two\n", 2)


async def test_a_wrong_key_is_one_line(stack: Stack) -> None:
    await stack.gateway("--api-keys", "right")
    done = chat(stack, "hi\n", "--api-key", "wrong")
    assert done.returncode == 2
    assert done.stderr.startswith("tokenbus: ")
    assert len(done.stderr.splitlines()) == 1


def test_no_server_is_one_line(stack: Stack) -> None:
    stack.url = "http://127.0.0.1:1"
    done = chat(stack, "hi\n")
    assert done.stderr == "tokenbus: no server at http://127.0.0.1:1/v1; `tokenbus up` starts one\n"
    assert done.returncode == 2


async def test_a_failed_question_is_one_line_and_forgotten(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker()
    await stack.models("echo")
    done = chat(stack, "fine\n" + "word " * 10**7 + "\n/history\n", "--max-tokens", "1")
    assert done.stdout.splitlines() == ["fine", "user: fine", "assistant: fine"]
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 1  # in a pipe nobody reads the line


class Terminal:
    """A chat whose user sits at a terminal."""

    def __init__(self, *flags: str) -> None:
        self._ours, its = os.openpty()
        env = environment(Path("/nowhere")) | {"TERM": "dumb"}
        self.process = subprocess.Popen(tokenbus("run", *flags), env=env, stdin=its, stdout=its, stderr=its)
        os.close(its)
        os.set_blocking(self._ours, False)
        self._seen = bytearray()

    def shows(self, text: str, times: int = 1) -> bool:
        with suppress(BlockingIOError, OSError):
            self._seen.extend(os.read(self._ours, 65536))
        return self._seen.count(text.encode()) >= times

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


async def test_ctrl_c_stops_the_answer_and_keeps_the_session(stack: Stack) -> None:
    await stack.gateway()
    await stack.worker("--engine", "echo", "--echo-interval-ms", "20")
    await stack.models("echo")
    terminal = Terminal("echo", "--base-url", f"{stack.url}/v1")

    async def is_free() -> bool:
        return all(row["slots_used"] == 0 for row in await stack.registry())

    try:
        await wait_until(lambda: terminal.shows(">>> "), description="a prompt")
        terminal.type("again")
        await wait_until(lambda: terminal.shows("again again again"), description="an answer that goes on for long")
        terminal.process.send_signal(signal.SIGINT)
        await wait_until(lambda: terminal.shows("[stopped]"), description="the answer stops")
        await wait_until(is_free, description="the slot is free", timeout=5)
        terminal.type("/history")
        await wait_until(lambda: terminal.shows("assistant: again again"), description="what was said is remembered")
        terminal.type("/quit")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
