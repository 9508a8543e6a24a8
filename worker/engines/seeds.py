"""Seeds for engines that draw by one generator a sequence, from its beginning."""

import hashlib

from shared.messages import SamplingParams


def seed_of(asked: SamplingParams, choice: int, made: int) -> int:
    """63 bits. Others for each choice, and for what is continued after `made` tokens: its noise is not that of the
    beginning again."""
    text = f"{asked.seed}:{choice}:{made}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
