"""What `tokenbus up` prints when all is ready: an address, and lines to paste."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cli.valkey import EmbeddedValkey
from shared.connection import describe

QUESTION = "What is the capital of France?"
OPTIONS = {"max_tokens": 32, "temperature": 0}  # a small model makes a better first impression when it is greedy


@dataclass(frozen=True, slots=True)
class Banner:
    host: str
    port: int
    models: Sequence[str]  # the first one chats
    api_key: str | None
    redis_line: str
    logs: Path
    tool: str = "tokenbus"  # how to type it here
    python_hint: str = "pip install openai"
    loaded: Sequence[str] | None = None  # of the models; None: all of them

    @property
    def origin(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    def render(self) -> str:
        return f"""
Tokenbus is ready at {self.base_url}

  models  {self._models()}
  logs    {self.logs}

From a shell:

{self.curl()}

{self.tool} run {self.models[0]}{self._run_flags()}
{self.tool} ps
{self.redis_line}

From Python ({self.python_hint}):

{self.python()}

Ctrl-C stops everything.
"""

    def _models(self) -> str:
        loaded = self.models if self.loaded is None else self.loaded
        later = [name for name in self.models if name not in loaded]
        return ", ".join([*loaded, *later]) + (f"  ({', '.join(later)}: loaded when asked for)" if later else "")

    def curl(self) -> str:
        body = {"model": self.models[0], "messages": [{"role": "user", "content": QUESTION}], **OPTIONS}
        words = ["curl", "-sS", f"{self.base_url}/chat/completions", "-H", "Content-Type: application/json"]
        if self.api_key:
            words += ["-H", f"Authorization: Bearer {self.api_key}"]
        return shlex.join([*words, "-d", json.dumps(body)])

    def python(self) -> str:
        """Flat lines, so that they can be pasted into an interactive interpreter as well."""
        messages = [{"role": "user", "content": QUESTION}]
        options = ", ".join(f"{name}={value!r}" for name, value in OPTIONS.items())
        return "\n".join(
            [
                "from openai import OpenAI",
                f"client = OpenAI(base_url={self.base_url!r}, api_key={self.api_key or 'none'!r})",
                f"messages = {messages!r}",
                f"reply = client.chat.completions.create(model={self.models[0]!r}, messages=messages, {options})",
                "print(reply.choices[0].message.content)",
            ]
        )

    def _run_flags(self) -> str:
        flags = [] if self.origin == "http://127.0.0.1:8000" else ["--base-url", self.base_url]
        if self.api_key:
            flags += ["--api-key", self.api_key]
        return f" {shlex.join(flags)}" if flags else ""


def embedded_redis_line(server: EmbeddedValkey) -> str:
    """Works with redis-cli and valkey-cli; shows the password to nobody."""
    return f'REDISCLI_AUTH="$(cat {shlex.quote(str(server.password_file))})" redis-cli -p {server.port}'


def named_redis_line(url: str, in_environment: bool) -> str:
    if in_environment:
        return 'redis-cli -u "$REDIS_URL"'
    scheme = url.partition("://")[0]
    return shlex.join(["redis-cli", "-u", f"{scheme}://{describe(url)}"])


def tool_here() -> str:
    """The command's name, or its path where the environment that holds it is not active."""
    beside = Path(sys.executable).with_name("tokenbus")
    found = shutil.which("tokenbus")
    return "tokenbus" if found == str(beside) or not beside.exists() else shlex.quote(_short(beside))


def python_hint_here() -> str:
    return f"{_short(Path(sys.executable))} has the openai package" if find_spec("openai") else "pip install openai"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
