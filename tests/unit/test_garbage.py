import gc
from collections.abc import Iterator

import pytest

from shared.garbage import spare_what_is_loaded


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_the_collector_looks_at_what_came_later_alone() -> None:
    before = [object(), []]
    spare_what_is_loaded()
    after = [object(), []]
    looked_at = {id(one) for one in gc.get_objects()}
    assert id(after) in looked_at
    assert id(before) not in looked_at
