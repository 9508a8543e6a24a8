"""The requests of a run: what is asked, what must come back, and when the client leaves. Request N of a seed is always
the same, whatever happens around it."""

import random
from dataclasses import dataclass
from typing import Any

MODEL = "echo"
CRASH_WORD = "arsenic"
FILLER = "x" * 1000  # a word of the prompt that is never echoed
FILLERS = 70  # above the 64 kB from which on a payload lies aside


@dataclass(frozen=True, slots=True)
class Request:
    """`tokens` are those that one choice makes; `text` is less when a stop string cuts it."""

    number: int
    path: str
    body: dict[str, Any]
    tokens: list[str]
    text: str
    reason: str
    prompt_tokens: int
    choices: int
    streams: bool
    poison: bool = False
    leaves_after_s: float | None = None
    leaves_after_tokens: int | None = None

    @property
    def usage(self) -> tuple[int, int]:
        return self.prompt_tokens, self.choices * len(self.tokens)


class Mix:
    """Request after request; the poisoned ones are spread over the first four fifths of the run."""

    POISON_ONE_IN = 400

    def __init__(self, seed: int, requests: int) -> None:
        self._seed = seed
        early = range(max(1, requests * 4 // 5))
        self.poisoned = set(random.Random(f"{seed} poison").sample(early, max(1, requests // self.POISON_ONE_IN)))

    def request(self, number: int) -> Request:
        draw = random.Random(f"{self._seed} request {number}")
        return _poisoned(number, draw) if number in self.poisoned else _ordinary(number, draw)


def _poisoned(number: int, draw: random.Random) -> Request:
    streams = draw.random() < 0.5
    body = _chat(f"r{number} a little {CRASH_WORD}") | {"max_tokens": 5, "stream": streams}
    return Request(number, "/v1/chat/completions", body, [], "", "", 4, 1, streams, poison=True)


def _ordinary(number: int, draw: random.Random) -> Request:
    limit = draw.randint(5, 150)
    spare = draw.randint(1, 20)
    words = [f"r{number}w{i}" for i in range(limit + spare if draw.random() < 0.8 else spare + 4)]
    stop = _stop_string(words, limit, draw) if draw.random() < 0.2 else None
    if draw.random() < 0.05 and len(words) >= limit:
        words += [FILLER] * FILLERS
    choices = draw.choices((1, 2, 3), (75, 15, 10))[0]
    body: dict[str, Any] = {"max_tokens": limit, "n": choices}
    if stop is not None:
        body["stop"] = stop
    streams = draw.random() < 0.65
    if streams:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    chat = draw.random() < 0.7
    tokens, text, reason = _echoed(words, limit, stop)
    return Request(
        number,
        "/v1/chat/completions" if chat else "/v1/completions",
        body | (_chat(" ".join(words)) if chat else {"model": MODEL, "prompt": " ".join(words)}),
        tokens,
        text,
        reason,
        len(words) + (2 if chat else 0),
        choices,
        streams,
        **_leaving(draw, streams, limit),
    )


def _chat(text: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]}


def _stop_string(words: list[str], limit: int, draw: random.Random) -> str:
    """Begins within one word and ends within the next."""
    at = draw.randrange(min(limit, len(words)) - 1)
    return f"{words[at][1:]} {words[at + 1][:-1]}"


def _echoed(words: list[str], limit: int, stop: str | None) -> tuple[list[str], str, str]:
    """The tokens, the text and the finish reason of one choice."""
    tokens = [words[i % len(words)] for i in range(limit)]
    whole = " ".join(tokens)
    if stop is None or stop not in whole:
        return tokens, whole, "length"
    made = next(count for count in range(limit + 1) if stop in " ".join(tokens[:count]))
    return tokens[:made], whole[: whole.index(stop)], "stop"


def _leaving(draw: random.Random, streams: bool, limit: int) -> dict[str, Any]:
    if draw.random() >= 0.1:
        return {}
    if streams and draw.random() < 0.7:
        return {"leaves_after_tokens": draw.randint(1, limit)}
    return {"leaves_after_s": draw.uniform(0, 3)}
