"""What a gateway keeps of a durable request, as its client gets it."""

import asyncio

from gateway.recording import Recording
from shared.messages import End, Progress, Usage

DONE = End(reason="stop", usage=Usage(1, 2))


async def test_a_long_one_is_told_in_parts_and_others_have_their_turn_between_them() -> None:
    recording = Recording({"id": "resp_1"}, [], Recording.release, Recording.release)
    for place in range(10 * Recording.MOST + 1):
        recording.add(0, Progress(text=str(place)))
    recording.ended(DONE)
    turns, told, ends = 0, list[str](), list[int]()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others(), name="others")
    while not ends:
        updates = await recording.get()
        assert len(updates) <= Recording.MOST
        told += [update.text for update in updates if update.usage is None]
        ends += [len(told) for update in updates if update.usage is not None]
    task.cancel()
    assert told == [str(place) for place in range(10 * Recording.MOST + 1)]
    assert ends == [len(told)]
    assert turns >= 9
