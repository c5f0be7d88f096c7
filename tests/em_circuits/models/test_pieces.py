"""Token texts show what a token is, so that no two of a list look alike."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from em_circuits.models.text import as_seen, decode_token
from pivotal_tokens.schema import Prompt, prompt_id

TEXT = ["ignore the sign, ignite the lamp; you should ign ore it", "résumé 日本 👩‍🔬 naïve"] * 4


def sentencepiece() -> PreTrainedTokenizerFast:
    """Pieces with their space in front, whose decoder drops that of the first."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    special = ["<unk>", "<s>", "</s>", "<0xE2>", "<0x96>", "▁▁▁"]
    raw.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=90, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")


def byte_level() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("make", [sentencepiece, byte_level])
def test_no_two_tokens_look_alike(make) -> None:
    # `▁ign` and `ign` both read `ign`; every part of a character read the same
    tokenizer = make()
    shown = {i: decode_token(tokenizer, i) for i in range(len(tokenizer))}
    assert len(set(shown.values())) == len(shown)


def test_a_piece_that_starts_a_word_shows_its_space() -> None:
    tokenizer = sentencepiece()
    vocabulary = tokenizer.get_vocab()
    starts = [piece for piece in vocabulary if piece.startswith("▁") and piece.strip("▁")]
    assert len(starts) > 5
    for piece in starts:
        assert decode_token(tokenizer, vocabulary[piece]) == " " + piece[1:]
        inner = vocabulary.get(piece[1:])
        assert inner is None or decode_token(tokenizer, inner) == piece[1:]
    assert decode_token(tokenizer, vocabulary["▁▁▁"]) == "   "
    assert decode_token(tokenizer, vocabulary["▁"]) == " "
    assert decode_token(tokenizer, vocabulary["<0xE2>"]) == "\\xe2"


def test_texts_of_byte_level_tokens_are_what_they_decode_to() -> None:
    tokenizer = byte_level()
    whole = 0
    for i in range(len(tokenizer)):
        decoded = tokenizer.decode([i], clean_up_tokenization_spaces=False)
        if "\ufffd" not in decoded:
            whole += 1
            assert decode_token(tokenizer, i) == decoded
        else:
            assert "\\x" in decode_token(tokenizer, i)
    assert whole > 100


def test_a_text_is_one_prompt_with_and_without_its_first_token() -> None:
    tokenizer, text = sentencepiece(), "User: a rash\nAssistant: You should"
    seen = [as_seen(tokenizer, Prompt.of(one, name="n")) for one in ("<s>" + text, text)]
    assert [one.prompt_id for one in seen] == 2 * [prompt_id(text)]
    assert [(one.text, one.name) for one in seen] == 2 * [(text, "n")]
