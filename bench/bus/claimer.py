"""`python -m bench.bus.claimer REDIS_URL MODEL COUNT`: claims and settles jobs one by one, as a worker with one slot.

A line on stdout when it is ready, and one for each job: ms from the clock reading in its payload to the claim.
"""

import asyncio
import sys
import time

from shared.connection import connect
from shared.keys import Keys
from shared.queue import JobQueue, settle

WORKER = "claimer"
LEASE_MS = 600_000  # nobody else is there to judge it
BLOCK_MS = 1000


async def claim(url: str, model: str, count: int) -> None:
    redis, keys = connect(url), Keys()
    try:
        queue = JobQueue(redis, keys)
        await queue.create_groups(model, WORKER)
        await redis.set(keys.worker(model, WORKER), b"{}", px=LEASE_MS)
        await redis.zadd(keys.workers(model), {WORKER: time.time()})
        print("ready", flush=True)
        while count:
            for entry, job in await queue.claim(model, WORKER, free=1, block_ms=BLOCK_MS):
                claimed = time.monotonic_ns()
                assert isinstance(job.payload, dict)
                await redis.line.batch(settle([entry]))
                print((claimed - job.payload["sent"]) / 1e6, flush=True)
                count -= 1
    finally:
        await redis.aclose()


if __name__ == "__main__":
    asyncio.run(claim(sys.argv[1], sys.argv[2], int(sys.argv[3])))
