import os
import socket
import stat
from pathlib import Path

import pytest

from cli import valkey
from cli.valkey import EmbeddedValkey
from shared.errors import StartupError


@pytest.fixture
def server(tmp_path: Path) -> EmbeddedValkey:
    server = EmbeddedValkey(tmp_path / "valkey")
    with server.locked(), server.configured():
        pass
    return server


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_password_and_config_are_for_the_user_alone(server: EmbeddedValkey) -> None:
    assert mode(server.folder) == 0o700
    assert mode(server.password_file) == 0o600
    assert mode(server.folder / "valkey.conf") == 0o600
    password = server.password_file.read_text().strip()
    assert len(password) >= 32
    assert password not in " ".join(server.command)


def test_the_config_binds_to_loopback_and_appends(server: EmbeddedValkey) -> None:
    lines = (server.folder / "valkey.conf").read_text().splitlines()
    password = server.password_file.read_text().strip()
    expected = {"bind 127.0.0.1", f"port {server.port}", f"requirepass {password}", "appendonly yes"}
    expected |= {"appendfsync everysec", "maxmemory 1gb", "maxmemory-policy noeviction"}
    assert expected <= set(lines)
    assert server.url == f"redis://:{password}@127.0.0.1:{server.port}"


def test_the_password_and_the_port_stay(server: EmbeddedValkey) -> None:
    before = server.url
    with server.locked(), server.configured():
        assert server.url == before


def test_a_taken_port_is_avoided(server: EmbeddedValkey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (server.folder / "port").write_text(str(port))
        with server.locked(), server.configured():
            assert server.port != port


def test_two_that_start_at_once_have_two_ports(server: EmbeddedValkey, tmp_path: Path) -> None:
    other = EmbeddedValkey(tmp_path / "other")
    with other.locked():
        (other.folder / "port").write_text(str(server.port))
        with server.locked(), server.configured(), other.configured():
            assert other.port != server.port


def test_the_folder_has_one_owner(server: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "LOCK_WAIT_S", 0)
    assert not server.is_running()
    with server.locked():
        assert server.is_running()
        with (
            pytest.raises(StartupError, match=f"another `tokenbus up` \\(process {os.getpid()}\\)"),
            EmbeddedValkey(server.folder).locked(),
        ):
            pass
    assert not server.is_running()


def test_a_server_left_behind_is_named(server: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "LOCK_WAIT_S", 0)
    with server.locked():
        (server.folder / "lock").write_text("")  # its `up` is gone, and the server holds the lock
        (server.folder / "valkey.pid").write_text(str(os.getpid()))
        with pytest.raises(StartupError, match=f"kill {os.getpid()}"), EmbeddedValkey(server.folder).locked():
            pass


def test_a_named_redis_comes_before_the_embedded_one(server: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "data_folder", lambda: server.folder)
    assert valkey.find_redis_url("redis://there") == "redis://there"
    with pytest.raises(StartupError, match="no `tokenbus up` is running"):
        valkey.find_redis_url("")
    with server.locked():
        assert valkey.find_redis_url("") == server.url
