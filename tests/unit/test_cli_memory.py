"""Which GPUs a model is given, by what nvidia-smi tells, which a script plays here."""

from pathlib import Path

import pytest

from cli import memory
from cli.memory import Memory, Place, deal, gpus_of, need_of
from cli.stack import Model
from cli.supervisor import Service

GIB = 2**30
SERVICE = Service(name="worker", command=("worker",), log=Path("log"), tier=1, environment={"A": "b"})


class Machine:
    """GPUs of 24 GiB, of which so many GiB are free."""

    def __init__(self, folder: Path) -> None:
        self._script = folder / "nvidia-smi"

    def has(self, *free: int) -> None:
        rows = [f"{place}, GPU-{place}a7c, {one * 1024}, {24 * 1024}" for place, one in enumerate(free)]
        self._script.write_text("\n".join(["#!/bin/sh", *(f"echo '{row}'" for row in rows)]))
        self._script.chmod(0o755)
        memory._size_of_gpu.cache_clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Machine(tmp_path)


@pytest.fixture(autouse=True)
def measured_anew() -> None:
    memory._size_of_gpu.cache_clear()


def model(name: str, **flags: str) -> Model:
    words = [word for flag, value in flags.items() for word in (f"--{flag.replace('_', '-')}", value)]
    return Model(name, f"/models/{name}", flags=tuple(words))


def test_the_freest_has_room_or_none_has(machine: Machine) -> None:
    machine.has(3, 23, 10)
    assert Memory(None).room(model("a"), 22 * GIB, 0, {}) == Place(("1",))
    assert Memory(None).room(model("a"), 24 * GIB, 0, {}) is None
    assert Memory(None).room(model("a"), 24 * GIB, 0, {"1": 2 * GIB}) == Place(("1",))
    assert Memory(None).room(model("a"), 22 * GIB, 0, {"0": 21 * GIB}) == Place(("0",))


@pytest.mark.parametrize(
    "flags", [{"tensor_parallel_size": "2"}, {"num_gpus": "2"}, {"pipeline_parallel_size": "2", "num_gpus": "0"}]
)
def test_one_that_takes_two_has_its_share_on_each(machine: Machine, flags: dict[str, str]) -> None:
    machine.has(23, 3, 22)
    assert gpus_of(model("a", **flags)) == 2
    assert Memory(None).room(model("a", **flags), 42 * GIB, 0, {}) == Place(("0", "2"))
    assert Memory(None).room(model("a", **flags), 46 * GIB, 0, {}) is None


def test_what_the_worker_would_refuse_itself_is_left_to_it(machine: Machine) -> None:
    machine.has(23)
    assert Memory(None).room(model("a", tensor_parallel_size="2"), 42 * GIB, 0, {}) == Place()


def test_a_flag_may_be_a_variable(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(24, 24)
    monkeypatch.setenv("TOKENBUS_TENSOR_PARALLEL_SIZE", "2")
    monkeypatch.setenv("TOKENBUS_GPU_MEMORY_UTILIZATION", "0.5")
    assert gpus_of(model("a")) == 2
    assert need_of(model("a")) == 24 * GIB
    monkeypatch.setenv("TOKENBUS_DEVICE", "cpu")
    assert gpus_of(model("a")) == 0


def test_a_stated_budget_counts_and_not_what_is_free(machine: Machine) -> None:
    machine.has(1, 3)
    assert Memory(30 * GIB).room(model("a"), 20 * GIB, 10 * GIB, {}) == Place(("1",))
    assert Memory(30 * GIB).room(model("a"), 20 * GIB, 11 * GIB, {}) is None
    assert Memory(30 * GIB).room(model("a"), 20 * GIB, 11 * GIB, {"0": GIB}) == Place(("1",))


def test_what_is_loaded_at_once_is_dealt_out(machine: Machine) -> None:
    machine.has(24, 24, 24)
    models = [model("a"), model("b", tensor_parallel_size="2"), model("c", device="cpu"), Model("echo")]
    assert deal(models) == {"a": Place(("0",)), "b": Place(("1", "2")), "c": Place(), "echo": Place()}


@pytest.mark.parametrize(
    ("visible", "place"), [("2,1", ("2",)), ("GPU-1a7c", ("GPU-1a7c",)), ("", ()), ("7", ()), (" 0", ("0",))]
)
def test_only_what_workers_see_counts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, visible: str, place: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine.has(20, 22, 24)
    assert deal([model("a")]) == {"a": Place(place)}


def test_without_a_gpu_the_machine_s_memory_counts(machine: Machine) -> None:
    assert deal([model("a")]) == {"a": Place()}
    assert Memory(None).room(model("a"), GIB, 0, {}) == Place()
    assert Memory(None).room(model("a"), 2**60, 0, {}) is None
    assert Memory(None).room(model("a"), 2**60, 0, {"": 2**60}) == Place()


def test_a_worker_is_told_its_place() -> None:
    assert Place().given_to(SERVICE) is SERVICE
    placed = Place(("1", "3")).given_to(SERVICE)
    assert placed.environment == {"A": "b", "CUDA_VISIBLE_DEVICES": "1,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert Place.of(placed) == Place(("1", "3"))
    assert Place.of(SERVICE) == Place()
    assert Place(("1", "3")).shares(10) == {"1": 5, "3": 5}
    assert Place().shares(10) == {"": 10}


@pytest.mark.parametrize(
    ("files", "path", "weights"),
    [
        ({"model-00001-of-00002.safetensors": 3, "model-00002-of-00002.safetensors": 4, "config.json": 9}, "", 7),
        ({"model.safetensors": 3, "pytorch_model.bin": 3, "optimizer.pt": 6}, "", 3),
        ({"pytorch_model.bin": 3, "training_args.bin": 1}, "", 3),
        (
            {"m-00001-of-00002.gguf": 3, "m-00002-of-00002.gguf": 4, "n-00001-of-00002.gguf": 9},
            "m-00001-of-00002.gguf",
            7,
        ),
        ({"m.gguf": 3, "n.gguf": 9}, "m.gguf", 3),
        ({}, "nowhere/at/all", 0),
    ],
)
def test_weights_are_counted_once_and_whole(tmp_path: Path, files: dict[str, int], path: str, weights: int) -> None:
    for name, size in files.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert memory.weights_of(str(tmp_path / path)) == weights
