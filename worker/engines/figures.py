"""What an engine tells of itself while it runs: how fast a step is, how full its cache is and how useful."""

import time
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """None: not known. usage: the part of the memory for keys and values that running sequences have. hit_rate: the
    part of the prompts' tokens, lately, that were not computed again."""

    usage: float | None = None
    hit_rate: float | None = None


class StepTimes:
    """Of the last steps. Written in one thread, read in another."""

    QUICK_OF = 256  # steps that tell how fast it can be
    FORGOTTEN_S = 60.0  # after the last of them: load, and what it shares its machine with, may have changed

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=self.QUICK_OF)
        self._last_at = 0.0

    def add(self, seconds: float) -> None:
        self._last_at = time.monotonic()
        self._seconds.append(seconds)

    def quick_ms(self) -> float:
        """What a quick one took. 0: not known."""
        if time.monotonic() - self._last_at > self.FORGOTTEN_S:
            self._seconds.clear()
        seconds = sorted(list(self._seconds))  # a copy first: the other thread goes on
        return seconds[len(seconds) // 10] * 1000 if seconds else 0.0


class HitRate:
    """Of the prompts that came last. Written in one thread, read in another."""

    PROMPTS = 1000

    def __init__(self) -> None:
        self._prompts: deque[tuple[int, int]] = deque(maxlen=self.PROMPTS)

    def add(self, tokens: int, hits: int) -> None:
        self._prompts.append((tokens, hits))

    def share(self) -> float | None:
        prompts = list(self._prompts)
        tokens = sum(tokens for tokens, _ in prompts)
        return sum(hits for _, hits in prompts) / tokens if tokens else None
