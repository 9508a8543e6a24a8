import pytest

from cli.drain import find
from shared.errors import StartupError
from tests.integration.bus import make_info

ALIVE = [make_info(id) for id in ("gpu-aaaa1111", "gpu-2-bbbb2222", "gpu-2-bbbb3333", "cpu-cccc4444")]


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("gpu-2-bbbb2222", "gpu-2-bbbb2222"),
        ("gpu", "gpu-aaaa1111"),  # a host's name, though other ids begin with it too
        ("cpu", "cpu-cccc4444"),
        ("c", "cpu-cccc4444"),
        ("gpu-2-bbbb3", "gpu-2-bbbb3333"),
    ],
)
def test_a_worker_is_found_by_id_host_or_beginning(name: str, id: str) -> None:
    assert find(name, ALIVE).id == id


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("gpu-2", "'gpu-2' may be any of gpu-2-bbbb2222, gpu-2-bbbb3333; name one"),
        ("tpu", "there is no worker 'tpu'; alive are: cpu-cccc4444, gpu-2-bbbb2222, gpu-2-bbbb3333, gpu-aaaa1111"),
        ("", "there is no worker ''; alive are: cpu-cccc4444, gpu-2-bbbb2222, gpu-2-bbbb3333, gpu-aaaa1111"),
    ],
)
def test_what_is_not_exactly_one_says_who_there_is(name: str, answer: str) -> None:
    with pytest.raises(StartupError) as refusal:
        find(name, ALIVE)
    assert str(refusal.value) == answer
