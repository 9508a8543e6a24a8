"""Clients that live in an environment of their own: they want other versions of openai and rich than ours, or node.

Their tests are in `foreign/` and `node/`. All of these programs run at the same time, as clients do, and each has a
test here that ends when it does. Those that take minutes run with CLIENTS=all, as `make clients` sets it.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.clients.conftest import KEY
from tests.e2e.clients.reference import Reference
from tests.processes import ROOT, Stack

HERE = Path(__file__).parent
ENVIRONMENT = ROOT / ".venv" / "clients" / "bin"

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not ENVIRONMENT.exists(), reason="other people's clients are not here: `make test` installs them"
    ),
]
PYTHON = ["python", "-m", "pytest", "-p", "pytest_asyncio.plugin"]
OF_LANGCHAIN = ("xdist.plugin", "pytest_benchmark.plugin", "pytest_recording.plugin", "pytest_socket", "syrupy")
NODE = ["node", "--test", "--test-reporter", "spec"]
COMMANDS = {
    "langchain": [*PYTHON, *(f"-p{plugin}" for plugin in OF_LANGCHAIN), "-n2", "foreign/test_langchain.py"],
    "litellm": [*PYTHON, "foreign/test_litellm.py"],
    "llama-index": [*PYTHON, "foreign/test_llama_index.py"],
    "instructor": [*PYTHON, "foreign/test_instructor.py"],
    "llm": [*PYTHON, "foreign/test_llm.py"],
    "lm-eval": [*PYTHON, "foreign/test_lm_eval.py"],
    "node": [*NODE, *(f"node/{client}.test.mjs" for client in ("openai", "ai", "anthropic"))],
}

SLOW: set[str] = set() if os.environ.get("CLIENTS") == "all" else {"langchain", "lm-eval"}
IN_MINUTES = "it takes minutes: `make clients` runs it"


class Program:
    """One of the clients' test runs, with all that it says in a file."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        program = ENVIRONMENT / command[0]
        assert program.exists(), "the clients are not installed: make .venv/installed-clients"
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [program, *command[1:]], cwd=HERE, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def passes(self) -> None:
        assert self._process.wait() == 0, self._log.read_text(errors="replace")

    def end(self) -> None:
        """With all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where lm-eval's tests leave what it measured."""
    return tmp_path_factory.mktemp("lm-eval") / "measured.json"


@pytest.fixture(scope="session")
def programs(
    served: Stack, reference: Reference, measured: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Program]]:
    folder = tmp_path_factory.mktemp("programs")
    reference.tokenizer.save_pretrained(folder / "tokenizer")  # lm-eval takes no GGUF file
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = ours | {
        "CLIENTS_URL": f"{served.url}/v1",
        "CLIENTS_KEY": KEY,
        "CLIENTS_TOKENIZER": str(folder / "tokenizer"),
        "CLIENTS_MEASURED": str(measured),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # some take longer to load than the tests to run
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet for one
    }
    started: dict[str, Program] = {}
    try:
        for name in COMMANDS.keys() - SLOW:
            started[name] = Program(COMMANDS[name], folder / f"{name}.log", environment)
        yield started
    finally:
        for program in started.values():
            program.end()


@pytest.mark.skipif("lm-eval" in SLOW, reason=IN_MINUTES)
def test_lm_eval_measures_what_the_model_says_of_itself(
    programs: dict[str, Program], reference: Reference, measured: Path
) -> None:
    """First of all: the reference is loaded while the others still run."""
    programs["lm-eval"].passes()
    told = json.loads(measured.read_text())
    expected = [reference.loglikelihood(context, continuation) for context, continuation in told["pairs"]]
    assert {greedy for _, greedy in expected} == {True, False}
    for way, pairs in told["measured"].items():
        assert [value for value, _ in pairs] == pytest.approx([value for value, _ in expected], abs=1e-4), way
        assert [greedy for _, greedy in pairs] == [greedy for _, greedy in expected], way
    assert told["rolling"] == pytest.approx([reference.loglikelihood("", told["text"])[0]], abs=1e-4)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.skipif(name in SLOW, reason=IN_MINUTES)) for name in COMMANDS],
)
def test_a_client_works_unchanged(programs: dict[str, Program], name: str) -> None:
    programs[name].passes()
