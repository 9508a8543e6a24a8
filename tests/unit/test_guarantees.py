"""docs/guarantees.md names the test of each promise: those tests exist."""

import re

import pytest

from tests.processes import ROOT

NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "guarantees.md").read_text())


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_promise_names_a_test_that_exists(file: str, name: str) -> None:
    path = ROOT / (file if "/" in file else f"tests/fault/{file}")
    assert re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE)
