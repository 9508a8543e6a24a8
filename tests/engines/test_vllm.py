"""The vLLM engine, in an environment of its own: it wants another transformers than ours.

What every engine keeps (`test_conformance.py`) and what it does beside transformers (`vllm/`) runs there, as one test
here: its libraries take longer to import than the tests to run.
"""

import os
import subprocess

import pytest

from tests.processes import ROOT, VLLM

TESTS = ("tests/engines/test_conformance.py", "tests/engines/vllm")

LIMIT_S = 600  # two of its engines start, and each compiles as much as it imports
pytestmark = [
    pytest.mark.skipif(not VLLM.exists(), reason="vLLM is not here: `make test` installs it"),
    pytest.mark.timeout(LIMIT_S + 20),
]


def test_it_passes() -> None:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Its libraries warn of each other, and what they warn of is not ours.
    command = [VLLM, "-m", "pytest", "-W", "default", "-p", "no:cacheprovider", *TESTS]
    environment = {**ours, "TESTED_ENGINES": "vllm", "VLLM_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
