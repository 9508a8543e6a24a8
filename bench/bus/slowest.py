"""Where the slowest first tokens of a load lost their time, by the traces that `tokenbus explain` reads."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from shared.connection import Redis
from shared.keys import Keys
from shared.messages import Milestone, Trace, decode_trace

SLOWEST = 0.01  # of all jobs
BATCH = 1000


class Life(NamedTuple):
    """Of one job; ms."""

    worker: str
    to_claim: int
    to_token: int  # from the claim on

    @property
    def total(self) -> int:
        return self.to_claim + self.to_token


async def lives(redis: Redis, namespace: str) -> list[Life]:
    """Of the jobs whose traces are there; they are taken away, so that the next load begins without any."""
    names = [name async for name in redis.scan_iter(Keys(namespace).trace("*"), count=BATCH)]
    found = []
    for start in range(0, len(names), BATCH):
        blobs = await redis.mget(names[start : start + BATCH])
        await redis.delete(*names[start : start + BATCH])
        found += [life for blob in blobs if blob and (life := _life(decode_trace(blob)))]
    return found


def _life(trace: Trace) -> Life | None:
    first: dict[str, Milestone] = {}
    for milestone in trace.milestones:
        first.setdefault(milestone.event, milestone)
    if not {"accepted", "claimed", "first_token"} <= first.keys():
        return None
    accepted, claimed, token = first["accepted"], first["claimed"], first["first_token"]
    return Life(str(claimed.details.get("worker")), claimed.at - accepted.at, token.at - claimed.at)


def explain(jobs: Sequence[Life]) -> str:
    """In a line. The slow worker is the one where a first token takes longest."""
    if not jobs:
        return "no traces"
    slow = max({job.worker for job in jobs}, key=lambda worker: _typical(jobs, worker))
    worst = sorted(jobs, key=lambda job: job.total)[-max(1, round(SLOWEST * len(jobs))) :]
    there = sum(job.worker == slow for job in worst) / len(worst)
    everyone = sum(job.worker == slow for job in jobs) / len(jobs)
    return (
        f"{everyone:.0%} of all and {there:.0%} of the slowest 1% ran at the slowest worker; "
        f"those waited {median(job.to_claim for job in worst):.0f} ms for a claim "
        f"and {median(job.to_token for job in worst):.0f} ms for their token"
    )


def _typical(jobs: Sequence[Life], worker: str) -> float:
    return median(job.to_token for job in jobs if job.worker == worker)
