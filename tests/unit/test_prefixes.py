"""Whatever was added and removed, the index names those that begin with most of the same blocks."""

import random

from worker.engines.prefixes import BLOCK, Prefix, PrefixIndex


def blocks_in_common(one: Prefix, other: Prefix) -> int:
    return one.common(other, len(other.ids)) // BLOCK


def test_the_index_names_those_with_most_blocks_in_common() -> None:
    chance = random.Random(2)
    index, inside = PrefixIndex[Prefix](), list[Prefix]()
    for _ in range(1500):
        base = chance.choice(inside).ids if inside and chance.random() < 0.7 else []
        ids = base[: chance.randrange(len(base) + 1)] + chance.choices(range(3), k=chance.randrange(60))
        asked = Prefix(ids)
        most = max((blocks_in_common(one, asked) for one in inside), default=0)
        expected = [one for one in inside if most and blocks_in_common(one, asked) == most]
        assert set(index.alike(asked)) == set(expected)
        act = chance.randrange(4)
        if act == 0 and inside:
            index.remove(inside.pop(chance.randrange(len(inside))))
        elif act == 1 and inside:
            grown = chance.choice(inside)
            grown.ids.extend(chance.choices(range(3), k=chance.randrange(40)))
            index.add(grown)
        else:
            inside.append(asked)
            index.add(asked)


def test_what_is_cut_is_found_no_more() -> None:
    index, row = PrefixIndex[Prefix](), Prefix(list(range(3 * BLOCK)))
    index.add(row)
    index.remove(row)
    row.cut(2 * BLOCK - 1)
    index.add(row)
    assert index.alike(Prefix(list(range(3 * BLOCK)))) == [row]
    assert row.common(Prefix(list(range(3 * BLOCK))), 3 * BLOCK) == 2 * BLOCK - 1
    row.ids.extend([7] * BLOCK)
    index.add(row)
    assert index.alike(Prefix([*range(BLOCK), *[8] * BLOCK])) == [row]
    index.remove(row)
    assert index.alike(row) == []


def test_tokens_are_compared_whatever_their_hashes_say() -> None:
    one, other = Prefix([1, 2, 3, 4]), Prefix([1, 2, 5, 4, 9])
    assert (one.common(other, 4), one.common(other, 1), other.common(one, 5)) == (2, 1, 2)
