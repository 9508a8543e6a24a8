"""The noise of a token depends on seed, choice, index and token id alone."""

import pytest
import torch

from worker.engines.philox import Noise, gumbel, philox4x32

ONES = 0xFFFFFFFF
CPU = torch.device("cpu")
# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], result: tuple[int, ...]
) -> None:
    words = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))  # type: ignore[arg-type]
    assert tuple(word.item() for word in words) == result


def test_the_noise_of_a_token_does_not_depend_on_the_vocabulary_around_it() -> None:
    noise = Noise([(42, 0, 7), (43, 1, 7)], CPU)
    assert torch.equal(noise.whole(1001)[:, :998], noise.whole(998))


def test_the_counter_of_a_token_is_its_block_of_four_the_index_and_the_choice() -> None:
    words = philox4x32(tuple(map(torch.tensor, (5, 7, 3, 0))), (torch.tensor(42), torch.tensor(1)))  # type: ignore[arg-type]
    noise = Noise([(42 + 2**32, 3, 7)], CPU).whole(30)[0]
    assert torch.equal(noise[20:24], gumbel(torch.stack(words)))


def test_a_row_has_the_same_noise_alone_and_in_a_crowd() -> None:
    draws = [(seed, seed % 3, seed * 5) for seed in range(9)]
    crowd = Noise(draws, CPU).whole(77)
    for row, draw in enumerate(draws):
        assert torch.equal(Noise([draw], CPU).whole(77)[0], crowd[row])


@pytest.mark.parametrize("other", [(2, 0, 0), (1, 1, 0), (1, 0, 1), (1 + 2**32, 0, 0)])
def test_seed_choice_and_index_each_make_other_noise(other: tuple[int, int, int]) -> None:
    whole = Noise([(1, 0, 0), other], CPU).whole(64)
    assert (whole[0] != whole[1]).float().mean() > 0.9


@pytest.mark.parametrize(("seed", "same"), [(-1, 2**64 - 1), (2**64 + 5, 5), (-(2**70) + 9, 9)])
def test_any_int_is_a_seed_modulo_2_to_the_64(seed: int, same: int) -> None:
    assert torch.equal(Noise([(seed, 0, 0)], CPU).whole(64), Noise([(same, 0, 0)], CPU).whole(64))


def test_gumbel_is_finite_for_every_word() -> None:
    assert gumbel(torch.tensor([0, 1, 2**31, ONES - 1, ONES])).isfinite().all()


def test_gumbel_has_its_distribution() -> None:
    whole = Noise([(5, 0, index) for index in range(50)], CPU).whole(4000)
    assert whole.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert whole.std().item() == pytest.approx(1.2825, abs=0.01)
