"""Text comes out token by token, in whole characters."""

import random

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from tests.unit.byte_level import trained
from worker.engines.detokenizer import Detokenizer, special_ids

TEXT = "Grüße, 世界! 👩‍👩‍👧 naïve café ½ – the end\n"


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return trained("the end of the cafe", ["<|end|>"], 280)


@pytest.fixture(scope="module")
def sentencepiece_like() -> Tokenizer:
    """As Llama 2's: words begin with a space that stands for itself, unknown bytes fall back to <0x..>."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁end", "▁", "e", "n", "d"]
    bpe = Tokenizer(BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens(["<s>"])
    return bpe


def pieces_of(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context or [], special_ids(tokenizer))
    return [detokenizer.push(token_id) for token_id in ids]


def test_characters_split_over_tokens_come_out_whole(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(TEXT).ids
    pieces = pieces_of(byte_level, ids)
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[2:4] == ["", "ü"]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_is_never_completed_does_not_come_out(byte_level: Tokenizer, cut: int) -> None:
    ids = byte_level.encode("the 👩").ids
    assert "".join(pieces_of(byte_level, ids[:-cut])) == "the "


def test_special_tokens_are_not_shown(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("the <|end|>end").ids
    assert byte_level.token_to_id("<|end|>") in ids
    assert "".join(pieces_of(byte_level, ids)) == "the end"


def test_a_special_token_that_is_not_hidden_is_shown(byte_level: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_level)
    ids = byte_level.encode("the <|end|>end").ids
    assert "".join(map(detokenizer.push, ids)) == "the <|end|>end"


def test_ids_beyond_the_vocabulary_are_no_text(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("the").ids
    assert "".join(pieces_of(byte_level, [*ids, 100_000, *ids])) == "thethe"


def test_pieces_add_up_to_the_whole_text(byte_level: Tokenizer) -> None:
    chance = random.Random(1)
    for _ in range(200):
        ids = byte_level.encode("".join(chance.choices(TEXT, k=30))).ids
        assert "".join(pieces_of(byte_level, ids)) == byte_level.decode(ids)


def test_any_ids_at_all_are_decoded_without_an_error(byte_level: Tokenizer) -> None:
    chance = random.Random(2)
    for _ in range(200):
        ids = chance.choices(range(byte_level.get_vocab_size()), k=40)
        assert byte_level.decode(ids).startswith("".join(pieces_of(byte_level, ids)))


def test_bytes_that_stand_for_themselves_make_whole_characters(sentencepiece_like: Tokenizer) -> None:
    ids = [sentencepiece_like.token_to_id(f"<0x{byte:02X}>") for byte in "é世".encode()]
    assert pieces_of(sentencepiece_like, ids) == ["", "é", "", "", "世"]


def test_a_first_word_keeps_its_space_after_the_context_that_it_continues(sentencepiece_like: Tokenizer) -> None:
    the, end = (sentencepiece_like.token_to_id(piece) for piece in ("▁the", "▁end"))
    assert pieces_of(sentencepiece_like, [the, end]) == ["the", " end"]
    assert pieces_of(sentencepiece_like, [end, the], context=[the]) == [" end", " the"]


def test_nothing_of_a_context_comes_out(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("the 世 end").ids
    for cut in range(len(ids)):
        text = "".join(pieces_of(byte_level, ids[cut:], context=ids[:cut]))
        assert "the 世 end".endswith(text.lstrip("\ufffd")), cut
