"""Flags of the processes: values, sources, and one line for what does not fit."""

import socket
from pathlib import Path

import pytest

from gateway.listener import listen
from gateway.settings import GatewaySettings
from shared.errors import StartupError
from worker.engines.dialects import DIALECTS, OFF, REASONINGS
from worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("TOKENBUS_CONFIG", raising=False)


def gateway(*argv: str) -> GatewaySettings:
    return GatewaySettings.read("gateway", argv)


def worker(*argv: str) -> WorkerSettings:
    return WorkerSettings.read("worker", argv)


def test_lists_are_written_with_commas() -> None:
    assert gateway("--api-keys", "a, b,,c").api_keys == ["a", "b", "c"]


def test_flag_over_environment_over_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tokenbus.toml"
    file.write_text("port = 1\nmax_queue = 1\nrequest_timeout = 1.0\n")
    monkeypatch.setenv("TOKENBUS_CONFIG", str(file))
    monkeypatch.setenv("TOKENBUS_PORT", "2")
    monkeypatch.setenv("TOKENBUS_MAX_QUEUE", "2")
    settings = gateway("--port", "3")
    assert (settings.port, settings.max_queue, settings.request_timeout) == (3, 2, 1.0)


def test_a_settings_file_that_is_not_there_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENBUS_CONFIG", "/no/such/file.toml")
    with pytest.raises(StartupError, match="TOKENBUS_CONFIG: there is no file"):
        gateway()


def test_answers_on_a_kept_connection_are_not_held_back() -> None:
    with listen("127.0.0.1", 0)[0] as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_port_that_several_processes_serve_is_taken_for_others(processes: int) -> None:
    listeners = listen("127.0.0.1", 0, 2)
    port = listeners[0].getsockname()[1]
    assert [listener.getsockname()[1] for listener in listeners] == [port, port]
    try:
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1 port {port}"):
            listen("127.0.0.1", port, processes)
    finally:
        for listener in listeners:
            listener.close()


def test_what_bounds_all_processes_is_divided_among_them() -> None:
    share = gateway("--workers", "3", "--max-connections", "100", "--max-bodies-mb", "120").share()
    assert (share.workers, share.max_connections, share.max_bodies_mb) == (1, 34, 40)
    assert gateway("--workers", "16").share().max_bodies_mb == 32, "room for one of the largest that are allowed"
    assert gateway("--workers", "2", "--max-bodies-mb", "1").share().max_bodies_mb == 1


@pytest.mark.parametrize("name", ["REDIS_URL", "TOKENBUS_REDIS_URL"])
def test_redis_has_its_usual_name_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "redis://elsewhere:1")
    assert gateway().redis_url == "redis://elsewhere:1"


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    assert gateway("--api-keys", "zero", "--api-keys-file", str(file)).api_keys == ["zero", "one", "two"]
    with pytest.raises(StartupError, match="No such file"):
        gateway("--api-keys-file", str(tmp_path / "none"))


def test_a_value_that_does_not_fit_is_named_in_one_line() -> None:
    with pytest.raises(StartupError, match=r"^--port: .*integer") as error:
        gateway("--port", "x")
    assert "\n" not in str(error.value)


def test_an_unknown_flag_ends_with_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        gateway("--prt", "1")
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--engine", "vllm", "--model-path", "/m", "--load-4bit"), "--load-4bit is not for --engine vllm"),
        (("--engine", "llamacpp", "--model-path", "/m", "--dtype", "float32"), "--dtype is not for --engine llamacpp"),
        (("--engine", "transformers", "--model-path", "/m", "--enable-lora"), "--enable-lora is not for"),
        (("--engine", "openai"), "--upstream-url is needed"),
        (("--engine", "openai", "--upstream-url", "http://h/v1"), "--model-names is needed, or --upstream-model"),
        (("--upstream-url", "http://h/v1", "--engine", "vllm", "--model-path", "/m"), "--upstream-url is not for"),
        (("--engine", "vllm"), "--model-path is needed"),
    ],
)
def test_a_flag_that_an_engine_has_no_use_for_is_refused_by_name(flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(StartupError, match=said):
        worker(*flags)


def test_flags_of_an_engine_s_own_are_kept_as_they_were_typed() -> None:
    settings = worker("--engine", "vllm", "--model-path", "/m", "--enable-lora", "--quantization", "awq")
    assert settings.engine_flags == ["--enable-lora", "--quantization", "awq"]


@pytest.mark.parametrize(("flags", "bits"), [([], None), (["--load-8bit"], 8), (["--load-4bit"], 4)])
def test_weights_are_loaded_in_as_many_bits_as_asked_for(flags: list[str], bits: int | None) -> None:
    assert worker("--model-path", "/m", *flags).weight_bits() == bits


def test_8_and_4_bits_together_are_refused() -> None:
    with pytest.raises(StartupError, match="--load-8bit and --load-4bit: choose one"):
        worker("--model-path", "/m", "--load-8bit", "--load-4bit")


@pytest.mark.parametrize("size", ["20GiB", "13Gib", "20GB", "0.5gib", "900MiB", "900mB"])
def test_a_size_of_memory_is_written_as_for_fastchat(size: str) -> None:
    assert worker("--model-path", "/m", "--num-gpus", "2", "--max-gpu-memory", size).max_gpu_memory == size


@pytest.mark.parametrize("size", ["20", "20G", "20Gb", "many", "-1GiB", "GiB", "20 GiB"])
def test_another_spelling_is_refused_at_once(size: str) -> None:
    with pytest.raises(StartupError, match=rf"^--max-gpu-memory: '{size}' is no size of memory; write it as 20GiB"):
        worker("--model-path", "/m", f"--max-gpu-memory={size}")


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("--tool-call-parser", [*DIALECTS, OFF]),
        ("--reasoning-parser", [*REASONINGS, OFF]),
    ],
)
def test_every_dialect_can_be_named_and_another_is_refused_with_their_names(flag: str, names: list[str]) -> None:
    for name in names:
        settings = worker("--model-path", "/m", flag, name)
        assert getattr(settings, flag.strip("-").replace("-", "_")) == name
    with pytest.raises(StartupError) as caught:
        worker("--model-path", "/m", flag, "klingon")
    assert all(f"'{name}'" in str(caught.value) for name in names)


def test_flags_of_fastchat_without_meaning_here_are_accepted() -> None:
    settings = worker(
        "--model-path", "/m", "--host", "0.0.0.0", "--port", "21002", "--worker-address", "http://localhost:21002"
    )
    assert settings.without_meaning() == ["--host", "--port", "--worker-address"]
    assert worker("--model-path", "/m").without_meaning() == []


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--model-path", "/models/Qwen2.5-7B"], ["Qwen2.5-7B"]),
        (["--model-path", "/models/Qwen2.5-7B/"], ["Qwen2.5-7B"]),
        (["--model-path", "/models/tiny.gguf"], ["tiny"]),
        (["--model-path", "/m", "--model-names", "A,b,A"], ["A", "b"]),
        (["--model-path", "/m", "--served-model-name", "s"], ["s"]),
        (["--engine", "echo"], ["echo"]),
    ],
)
def test_names_default_to_the_folders(flags: list[str], names: list[str]) -> None:
    assert worker(*flags).names() == names


def test_a_model_is_needed() -> None:
    with pytest.raises(StartupError, match="--model-path is needed"):
        worker()
