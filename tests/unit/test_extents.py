"""Extents never overlap, gaps are used, and what moves can be copied in order."""

import random

from worker.engines.extents import Extent, Space


def test_the_smallest_gap_that_fits_is_taken() -> None:
    space = Space(1000, 10)
    extents = [space.allocate(size) for size in (95, 200, 30, 100)]
    sizes = [extent.size for extent in extents if extent is not None]
    assert sizes == [100, 200, 30, 100]
    for place in (1, 2):
        extent = extents[place]
        assert extent is not None
        if place == 2:
            space.release(extent)
    again = space.allocate(25)
    assert again is not None
    assert again.start == 300
    assert space.free == 1000 - 430
    assert space.allocate(600) is None


def test_an_extent_grows_up_to_the_next() -> None:
    space = Space(100, 10)
    first, second = space.allocate(20), space.allocate(20)
    assert first is not None
    assert second is not None
    assert not space.grow(first, 21)
    assert space.grow(second, 80)
    assert not space.grow(second, 81)
    space.release(first)
    assert space.free == 20


def test_whatever_happens_nobody_has_what_is_anothers() -> None:
    chance = random.Random(5)
    space, taken = Space(2048, 16), list[Extent]()
    owner: list[Extent | None] = [None] * 2048
    for _ in range(2000):
        act = chance.randrange(4)
        if act == 0 and (new := space.allocate(chance.randint(1, 300))) is not None:
            taken.append(new)
        elif act == 1 and taken:
            space.release(taken.pop(chance.randrange(len(taken))))
        elif act == 2 and taken:
            space.grow(chance.choice(taken), chance.randint(1, 500))
        elif act == 3:
            behind = chance.choice([None, *taken])
            content = [owner[place] for place in range(2048)]
            for extent, start in space.close_gaps(behind):  # copied in this order, nothing is lost
                content[extent.start : extent.end] = content[start : start + extent.size]
            for extent in taken:
                assert content[extent.start : extent.end] == [extent] * extent.size
            if behind is not None:
                assert space.grow(behind, behind.size + space.free // 16 * 16)
        owner = [None] * 2048
        for extent in taken:
            assert owner[extent.start : extent.end] == [None] * extent.size
            owner[extent.start : extent.end] = [extent] * extent.size
    assert space.free == owner.count(None)
