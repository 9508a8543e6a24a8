"""The registry as rows: one per living worker."""

import time
from typing import Any

from redis.exceptions import ResponseError
from rich.table import Table

from registry.directory import take_snapshot
from shared.connection import Redis
from shared.keys import GROUP, Keys

COLUMNS = {
    "worker": "WORKER",
    "models": "MODELS",
    "engine": "ENGINE",
    "state": "STATE",
    "slots": "SLOTS",
    "queue": "QUEUE",
    "tokens_per_s": "TOKENS/S",
    "age_s": "AGE",
}


async def rows(redis: Redis, keys: Keys) -> list[dict[str, Any]]:
    """One object per living worker; `queue` is what waits for its model, `slots_used` and `slots` are sequences."""
    snapshot = await take_snapshot(redis, keys)
    found = []
    for model, workers in sorted(snapshot.workers.items()):
        queue = await waiting(redis, keys, model)
        for info in sorted(workers, key=lambda info: info.started):
            found.append(
                {
                    "worker": info.id,
                    "models": info.names,
                    "engine": info.engine,
                    "state": info.state,
                    "slots_used": info.running,
                    "slots": info.slots,
                    "queue": queue,
                    "tokens_per_s": round(info.tokens_per_s, 1),
                    "age_s": round(time.time() - info.started, 1),
                }
            )
    return found


async def waiting(redis: Redis, keys: Keys, model: str) -> int:
    """Jobs queued for a model and claimed by nobody: XLEN - pending over its streams."""
    count = 0
    for stream in keys.job_streams(model):
        count += await redis.xlen(stream)
        try:
            count -= (await redis.xpending(stream, GROUP))["pending"]
        except ResponseError:  # nobody has created the group yet
            continue
    return count


def render(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in COLUMNS.values():
        table.add_column(title, overflow="fold")
    for row in found:
        shown = row | {
            "models": ",".join(row["models"]),
            "slots": f"{row['slots_used']}/{row['slots']}",
            "age_s": _age(row["age_s"]),
        }
        table.add_row(*(str(shown[column]) for column in COLUMNS))
    return table


def _age(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f}s" if minutes < 1 else f"{minutes:.0f}m" if hours < 1 else f"{hours:.1f}h"
