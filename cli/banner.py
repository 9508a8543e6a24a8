"""What `tokenbus up` prints when all is ready: an address, and lines to paste."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.valkey import EmbeddedValkey
from shared.connection import describe

GREETING = "Say hello in five words."


@dataclass(frozen=True, slots=True)
class Banner:
    host: str
    port: int
    models: Sequence[str]  # the first one chats
    api_key: str | None
    redis_line: str
    logs: Path

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

  models  {", ".join(self.models)}
  logs    {self.logs}

From a shell:

{self.curl()}

tokenbus run {self.models[0]}{self._run_flags()}
tokenbus ps
{self.redis_line}

From Python, with the openai package:

{self.python()}

Ctrl-C stops everything.
"""

    def curl(self) -> str:
        body = {"model": self.models[0], "messages": [{"role": "user", "content": GREETING}], "max_tokens": 32}
        words = ["curl", "-sS", f"{self.base_url}/chat/completions", "-H", "Content-Type: application/json"]
        if self.api_key:
            words += ["-H", f"Authorization: Bearer {self.api_key}"]
        return shlex.join([*words, "-d", json.dumps(body)])

    def python(self) -> str:
        """Flat lines, so that they can be pasted into an interactive interpreter as well."""
        messages = [{"role": "user", "content": GREETING}]
        return "\n".join(
            [
                "from openai import OpenAI",
                f"client = OpenAI(base_url={self.base_url!r}, api_key={self.api_key or 'none'!r})",
                f"messages = {messages!r}",
                f"reply = client.chat.completions.create(model={self.models[0]!r}, messages=messages, max_tokens=32)",
                "print(reply.choices[0].message.content)",
            ]
        )

    def _run_flags(self) -> str:
        flags = [] if self.port == 8000 else ["--base-url", self.base_url]
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
