"""Names that stand for several models, each with its share of the requests: for A/B tests and gradual moves."""

import hashlib
import math
import random
from collections.abc import Callable, Mapping


class Aliases:
    """Weighted rendezvous hashing: a user's requests stay at one model as long as it is there, and of a change of the
    weights only as many users notice as it moves. Without a user, each request is drawn by itself."""

    def __init__(self, shares: Mapping[str, Mapping[str, float]]) -> None:
        self.shares = shares

    def choose(self, name: str, user: str | None, is_there: Callable[[str], bool]) -> str:
        """A model for the alias, of those that are there; if none is, of all. Another name is what it is."""
        shares = self.shares.get(name)
        if shares is None:
            return name
        there = [model for model in shares if is_there(model)] or list(shares)
        return max(there, key=lambda model: math.log(_draw(name, model, user)) / shares[model])


def _draw(alias: str, model: str, user: str | None) -> float:
    """Above 0, at most 1; the same for the same user."""
    if user is None:
        return 1.0 - random.random()
    digest = hashlib.sha256("\0".join((alias, model, user)).encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8]) + 1) / 2**64
