"""The ids of a reply's tool calls."""

import hashlib


def call_id(answer: str, choice: int, index: int) -> str:
    """The same on every gateway: one may go on with what another began."""
    return "call_" + hashlib.blake2s(f"{answer}-{choice}-{index}".encode(), digest_size=12).hexdigest()
