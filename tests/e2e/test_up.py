"""`tokenbus up` for real: what it prints can be pasted, and nothing outlives it."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli.demo_models import CHAT, EMBEDDINGS
from tests.conftest import free_port, wait_until
from tests.e2e.up import Up, environment, line_with, tokenbus

Start = Callable[..., Up]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Up] = []

    def start(*flags: str, **variables: str) -> Up:
        started.append(Up(tmp_path, "--port", str(free_port()), *flags, **variables))
        return started[-1]

    yield start
    for up in started:
        up.close()


def test_what_it_prints_can_be_pasted(start: Start) -> None:
    up = start("--engine", "echo")
    banner = up.banner()

    reply = json.loads(up.paste(line_with(banner, "curl ")))
    assert reply["choices"][0]["message"]["content"].startswith("What is the capital of France?")

    snippet = banner[banner.index("from openai") : banner.index("Ctrl-C stops")]
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("What is the capital of France?")


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli on this machine")
def test_the_redis_line_opens_the_embedded_server(start: Start) -> None:
    up = start("--engine", "echo")
    line = line_with(up.banner(), "redis-cli")
    assert "tokenbus:models" in up.paste(f"{line} --scan")


def test_with_keys_the_lines_carry_one_and_others_are_refused(start: Start) -> None:
    up = start("--engine", "echo", TOKENBUS_API_KEYS="first key',second")
    banner = up.banner()
    curl = line_with(banner, "curl ")
    assert "choices" in json.loads(up.paste(curl))
    assert "error" in json.loads(up.paste(curl.replace("first", "wrong")))
    assert not any("first key" in " ".join(process.cmdline()) for process in up.tree())


def test_ps_and_run_find_the_stack_without_flags(start: Start) -> None:
    up = start("--engine", "echo")
    banner = up.banner()
    ps = line_with(banner, "tokenbus ps")
    assert "echo" in up.paste(ps)
    assert [row["models"] for row in json.loads(up.paste(f"{ps} --json"))] == [["echo"]]
    run = line_with(banner, "tokenbus run")
    assert up.paste(f"echo one two | {run} --max-tokens 3") == "one two one\n"


def test_ctrl_c_ends_everything_with_exit_code_0(start: Start) -> None:
    up = start("--engine", "echo")
    up.banner()
    assert len(up.tree()) == 3
    assert up.interrupt() == 0
    assert up.survivors(timeout=0) == []


def test_ctrl_c_while_it_starts_ends_everything(start: Start) -> None:
    up = start("--engine", "echo", "--model", "/dev/null=a")
    while len(up.tree()) < 2:
        assert up.popen.poll() is None, up.said()
    assert up.interrupt() == 0
    assert up.survivors(timeout=0) == []


async def test_a_second_ctrl_c_does_not_wait_for_open_requests(start: Start) -> None:
    up = start("--engine", "echo", "--drain-timeout", "60", TOKENBUS_ECHO_INTERVAL_MS="50")
    endless = (
        line_with(up.banner(), "curl ").replace('"max_tokens": 32', '"stream": true').replace("curl", "curl -N", 1)
    )
    with subprocess.Popen(["bash", "-c", f"exec {endless}"], stdout=subprocess.PIPE) as client:  # noqa: ASYNC220
        assert client.stdout is not None
        assert client.stdout.readline()
        up.popen.send_signal(signal.SIGINT)
        await wait_until(lambda: "stopping gateway" in up.said(), description="it waits for the stream")
        with pytest.raises(subprocess.TimeoutExpired):
            up.popen.wait(1)
        assert up.interrupt(timeout=5) == 0
    assert up.survivors(timeout=0) == []


def test_killed_hard_it_leaves_nothing_and_the_next_one_keeps_the_data(start: Start) -> None:
    up = start("--engine", "echo")
    redis = line_with(up.banner(), "REDISCLI_AUTH")
    up.popen.kill()
    up.popen.wait()
    assert up.survivors() == []

    again = start("--engine", "echo")
    assert line_with(again.banner(), "REDISCLI_AUTH") == redis
    assert again.interrupt() == 0


async def test_what_dies_is_started_again(start: Start) -> None:
    up = start("--engine", "echo")
    curl = line_with(up.banner(), "curl ")
    for words in (("valkey-server",), ("-m worker",), ("-m gateway",)):
        victim = up.child(*words)
        victim.kill()

        def replaced(words: tuple[str, ...] = words, victim: psutil.Process = victim) -> bool:
            return victim.pid != next(
                (p.pid for p in up.tree() if p.is_running() and all(word in _command(p) for word in words)), victim.pid
            )

        await wait_until(replaced, description=f"{words} runs again")
        assert "starts again" in up.said()

    def answers() -> bool:
        done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=False)
        return '"choices"' in done.stdout

    await wait_until(answers, description="the stack answers again", every=0.5)
    assert up.interrupt() == 0
    assert up.survivors(timeout=0) == []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_second_one_on_the_same_folder_is_refused(start: Start) -> None:
    start("--engine", "echo").banner()
    second = start("--engine", "echo")
    assert second.popen.wait(20) == 2
    assert "another `tokenbus up`" in second.said()
    assert len(second.said().splitlines()) == 1


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        up = Up(tmp_path, "--engine", "echo", "--port", str(server.getsockname()[1]))
        assert up.popen.wait(20) == 2
    assert "is in use" in up.said()
    assert len(up.said().splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_a_worker_that_cannot_start_is_quoted_and_everything_ends(start: Start) -> None:
    up = start("--model", "/nowhere/model=a")
    assert up.popen.wait(60) == 1
    assert "worker a ended with exit code 2" in up.said()
    assert "/nowhere/model" in up.said().splitlines()[-1]
    assert up.survivors(timeout=0) == []


def test_a_redis_of_ones_own_is_used_and_left_alone(start: Start, valkey_url: str) -> None:
    up = start("--engine", "echo", REDIS_URL=valkey_url)
    assert 'redis-cli -u "$REDIS_URL"' in up.banner()
    assert len(up.tree()) == 2
    assert up.interrupt() == 0


def test_ps_without_a_stack_says_so_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(tokenbus("ps"), env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "tokenbus: no `tokenbus up` is running here; start one, or set REDIS_URL\n"


@pytest.mark.model
@pytest.mark.skipif(not (CHAT.find() and EMBEDDINGS.find()), reason="the demo models are not installed")
def test_on_a_bare_machine_two_real_models_answer(start: Start) -> None:
    up = start(TOKENBUS_ENGINE="transformers")  # as `make install` leaves it: without llama.cpp, and its rounding
    banner = up.banner(timeout=240)
    assert line_with(banner, "  models").split(None, 1)[1] == "smollm2-135m, all-minilm-l6-v2"
    assert "Paris" in json.loads(up.paste(line_with(banner, "curl ")))["choices"][0]["message"]["content"]

    snippet = banner[banner.index("from openai") : banner.index("Ctrl-C stops")]
    snippet += "\nprint(len(client.embeddings.create(model='all-minilm-l6-v2', input='hi').data[0].embedding))"
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "384"
    assert up.interrupt() == 0
    assert up.survivors(timeout=0) == []
