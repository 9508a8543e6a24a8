import ast
import json
import shlex
from pathlib import Path

import pytest

from cli.banner import Banner, named_redis_line
from cli.stack import Model


def banner(host: str = "127.0.0.1", key: str | None = None, model: str = "m") -> Banner:
    return Banner(host, 9000, [model], key, redis_line="redis-cli -p 1", logs=Path("/logs"))


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("::", "http://[::1]:9000"),
        ("fe80::1", "http://[fe80::1]:9000"),
    ],
)
def test_the_address_can_be_called(host: str, origin: str) -> None:
    assert banner(host).origin == origin


def test_the_curl_line_is_one_shell_command_with_a_json_body() -> None:
    words = shlex.split(banner(key="it's", model='q"m').curl())
    assert words[0] == "curl"
    assert "Authorization: Bearer it's" in words
    assert json.loads(words[-1])["model"] == 'q"m'


def test_without_a_key_no_header_is_sent() -> None:
    assert "Authorization" not in banner().curl()


def test_the_python_lines_parse_whatever_the_names_hold() -> None:
    assert len(ast.parse(banner(key="it's \\", model='q"m').python()).body) == 5


def test_the_banner_is_flush_left_where_it_is_to_be_pasted() -> None:
    lines = banner().render().splitlines()
    for start in ("curl ", "from openai", "print(", "redis-cli"):
        assert any(line.startswith(start) for line in lines)


def test_a_password_in_a_redis_url_is_not_printed() -> None:
    assert named_redis_line("redis://:secret@host:1/2", in_environment=False) == "redis-cli -u redis://host:1/2"
    assert named_redis_line("redis://:secret@host:1/2", in_environment=True) == 'redis-cli -u "$REDIS_URL"'


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("/models/qwen", "qwen", "/models/qwen"),
        ("/models/qwen/", "qwen", "/models/qwen/"),
        ("m.gguf", "m", "m.gguf"),
        ("Qwen/Qwen3-0.6B=small", "small", "Qwen/Qwen3-0.6B"),
        ("/odd=folder/m", "m", "/odd=folder/m"),
    ],
)
def test_a_model_is_named_or_called_as_its_folder(text: str, name: str, path: str) -> None:
    assert Model.parse(text) == Model(name, path)
