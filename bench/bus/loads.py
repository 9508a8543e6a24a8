"""The loads that every system gets: what is asked for, and by how many clients at once."""

from dataclasses import dataclass

from bench.systems import Kind


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    model: Kind
    max_tokens: int
    stream: bool

    @property
    def flags(self) -> list[str]:
        """Of the load generator."""
        return ["--max-tokens", str(self.max_tokens), *(["--stream", "--usage"] if self.stream else [])]


ONE_TOKEN = Load("one token", "fast", 1, stream=False)
UNLIMITED = Load("64 tokens", "fast", 64, stream=True)
PACED = Load("64 tokens, 10 ms", "paced", 64, stream=True)
LOADS = (ONE_TOKEN, UNLIMITED, PACED)

CONCURRENCY = (1, 8, 32, 128, 256, 512, 1024)
QUICK_CONCURRENCY = (1, 32, 128, 256, 1024)
MOST = {"fastchat": 256, "litellm": 256}  # clients; beyond it they only queue
# p50 of the first content above which a system gets no second round of a point, and no more clients.
SLOW_MS, HOPELESS_MS = 1000.0, 5000.0
