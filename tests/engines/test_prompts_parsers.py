"""Workers that read tool calls differently do not continue each other's replies."""

from collections.abc import Callable
from pathlib import Path

from tests.engines.driving import Stepping


def test_a_parser_that_was_named_is_a_part_of_the_fingerprint(
    llama: Path, load: Callable[..., Stepping], loaded_llama: Stepping
) -> None:
    others = {
        load(llama, **options).info.fingerprint
        for options in ({"tool_call_parser": "mistral"}, {"tool_call_parser": "none"}, {"reasoning_parser": "none"})
    }
    assert len(others | {loaded_llama.info.fingerprint}) == 4
