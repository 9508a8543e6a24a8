"""The steps of the benchmark's producers."""

import asyncio

import pytest

from bench.peers.steps import Steps


class Request:
    def __init__(self, steps: Steps, tokens: int) -> None:
        self.made = 0
        self.ended = asyncio.Event()
        self._tokens = tokens
        steps.add(self, self.advance)

    def advance(self) -> bool:
        self.made += 1
        if self.made == self._tokens:
            self.ended.set()
        return self.made < self._tokens


@pytest.mark.parametrize("every", [0.0, 0.001])
async def test_each_request_gets_its_tokens_and_no_more(every: float) -> None:
    steps = Steps(every)
    short, long = Request(steps, 2), Request(steps, 5)
    await long.ended.wait()
    later = Request(steps, 1)  # the steps had stopped
    await later.ended.wait()
    assert (short.made, long.made, later.made) == (2, 5, 1)


async def test_one_step_takes_every_open_request_one_token_further() -> None:
    steps = Steps(0.0)
    requests = [Request(steps, 3) for _ in range(4)]
    seen = set()
    while not requests[-1].ended.is_set():
        await asyncio.sleep(0)
        seen.add(tuple(request.made for request in requests))
    assert seen <= {(made,) * 4 for made in range(4)}


async def test_a_discarded_request_gets_nothing_more() -> None:
    steps = Steps(0.0)
    gone, stays = Request(steps, 100), Request(steps, 10)
    sooner = Request(steps, 3)
    await sooner.ended.wait()
    made = gone.made
    steps.discard(gone)
    await stays.ended.wait()
    assert gone.made == made < stays.made
