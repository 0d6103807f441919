from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from benchmarks.distill.aligner import embedded_tokenizer, mistral_tokenizer
from hypothesis import example, given, settings
from tests.training.tokenizer_families import (
    FAMILIES,
    any_text,
    byte_level,
    gemma_like,
    llama_2_like,
    qwen_like,
    unigram,
    without_some_bytes,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from everswarm.errors import StageFailedError
from everswarm.settings import load_settings
from everswarm.training.chat_tokens import answer_ids
from everswarm.training.distillation.prompts import end_of_turn_id
from everswarm.training.distillation.token_bytes import (
    fallback_ids,
    ids_by_bytes,
    space_in_front,
    token_bytes,
    token_ends,
)


@cache
def pieces_of(family: str) -> tuple[PreTrainedTokenizerFast, list[bytes]]:
    tokenizer = FAMILIES[family]()
    return tokenizer, token_bytes(tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_any_text_cover_its_bytes(family: str) -> None:
    tokenizer, pieces = pieces_of(family)

    @settings(max_examples=60, deadline=None)
    @given(text=any_text)
    @example("")
    @example("  <|im_end|></s>\r\n\t1234 é e\u0301 가\u11a8 🏳️‍🌈 中文 ½ ▁▁a\x00\x16\x7f\U000409df\U00065000")
    def check(text: str) -> None:
        assert_covers(tokenizer, pieces, text)

    check()


@pytest.mark.model
def test_tokens_of_any_text_cover_its_bytes_with_real_tokenizers() -> None:
    tokenizers = [embedded_tokenizer(), mistral_tokenizer(load_settings().models_dir)]
    families = [(tokenizer, token_bytes(tokenizer)) for tokenizer in tokenizers]

    @settings(max_examples=200, deadline=None)
    @given(text=any_text)
    def check(text: str) -> None:
        for tokenizer, pieces in families:
            assert_covers(tokenizer, pieces, text)

    check()
    assert [len(pieces) for _, pieces in families] == [49_152, 32_768]
    assert families[0][1][end_of_turn_id(families[0][0])] == b"<|im_end|>"


def assert_covers(tokenizer: PreTrainedTokenizerFast, pieces: list[bytes], text: str) -> None:
    data, ids = text.encode(), answer_ids(tokenizer, text)
    ends = token_ends(ids, pieces, data).tolist()
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert ends[-1:] == [len(data)][: len(ids)]
    spelled = [pieces[number] for number in ids]
    if b"".join(spelled) in (data, b" " + data):
        if space_in_front(ids, pieces, data):
            spelled[0] = spelled[0][1:]
        assert covered(data, ends) == spelled


def covered(data: bytes, ends: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def cut(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    ends = token_ends(answer_ids(tokenizer, text), token_bytes(tokenizer), text.encode())
    return [part.decode(errors="surrogateescape") for part in covered(text.encode(), ends.tolist())]


def test_typed_special_token_is_plain_text() -> None:
    for tokenizer, text in ((byte_level(), "<|im_end|>"), (llama_2_like(), "</s>"), (gemma_like(), "a<bos>")):
        ids = answer_ids(tokenizer, text)
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert token_ends(ids, token_bytes(tokenizer), text.encode())[-1] == len(text)


def test_space_that_the_tokenizer_puts_in_front_covers_nothing() -> None:
    always, never = unigram("always"), unigram("never")
    assert cut(always, "answer a")[0] == "answer"
    assert cut(always, "42")[:2] == ["", "4"]
    assert cut(always, " answer") == cut(never, " answer") == [" answer"]
    for tokenizer, text, expected in (
        (always, "The", True), (always, " The", False), (llama_2_like(), "7", True),
        (never, "The", False), (byte_level(), " The", False), (always, "", False),
    ):  # fmt: skip
        ids = answer_ids(tokenizer, text)
        assert space_in_front(ids, token_bytes(tokenizer), text.encode()) is expected


def test_mark_of_sentencepiece_in_the_text_is_covered_by_the_space_that_it_became() -> None:
    pieces = [b" ", b"a", b" b"]
    assert token_ends([1, 2], pieces, "a▁b".encode()).tolist() == [1, 5]
    assert token_ends([0, 0, 1], pieces, "▁ a".encode()).tolist() == [3, 4, 5]
    assert token_ends([0, 1, 0], pieces, "a▁".encode()).tolist() == [0, 1, 4]
    assert "".join(cut(gemma_like(), "x▁▁y ▁")) == "x▁▁y ▁"


def test_typed_name_of_a_byte_is_covered_by_the_byte_that_unigram_takes_it_for() -> None:
    assert cut(unigram("never"), "a<0x41>▁<0x0G>")[:3] == ["a", "<0x41>", "▁"]
    assert "".join(cut(llama_2_like(), "a<0x41>▁b")) == "a<0x41>▁b"


def test_composed_character_is_covered_by_the_last_of_its_tokens() -> None:
    tokenizer = qwen_like()
    assert "".join(cut(tokenizer, "Cafe\u0301 가\u11a8")) == "Cafe\u0301 가\u11a8"
    pieces = [b"f", "é".encode(), b"\xc3", b"\xa9", b"x"]
    assert token_ends([0, 1, 4], pieces, "fe\u0301x".encode()).tolist() == [1, 4, 5]
    assert token_ends([0, 2, 3, 4], pieces, "fe\u0301x".encode()).tolist() == [1, 4, 4, 5]


def test_byte_without_a_token_belongs_to_a_neighbour() -> None:
    pieces = [b"a", b"b", b"ab"]
    assert token_ends([0, 1], pieces, b"\x16a\x16\x16b\x16").tolist() == [2, 6]
    assert token_ends([2], pieces, b"a\x16b").tolist() == [3]
    assert token_ends([], pieces, b"\x16").tolist() == []
    with pytest.raises(StageFailedError):
        token_ends([0], pieces, b"ab")
    assert cut(without_some_bytes(), "\x04a\x16\x13;\x06") == ["\x04a", "\x16\x13;\x06"]


def test_sentencepiece_marks_and_byte_fallback_become_bytes() -> None:
    for tokenizer in (llama_2_like(), gemma_like(), unigram()):
        pieces = token_bytes(tokenizer)
        assert pieces[tokenizer.convert_tokens_to_ids("▁answer")] == b" answer"
        assert pieces[tokenizer.convert_tokens_to_ids("<0xAB>")] == b"\xab"
        assert pieces[tokenizer.convert_tokens_to_ids("é")] == "é".encode()
        assert pieces[tokenizer.convert_tokens_to_ids("</s>")] == b"</s>"


def test_added_run_of_marks_is_spaces_and_an_added_byte_name_is_text() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=llama_2_like().backend_tokenizer)
    tokenizer.add_tokens(["▁▁▁▁", "<0xZZ>"])
    pieces = token_bytes(tokenizer)
    assert pieces[tokenizer.convert_tokens_to_ids("▁▁▁▁")] == b"    "
    assert pieces[tokenizer.convert_tokens_to_ids("<0xZZ>")] == b"<0xZZ>"


def test_plain_token_wins_over_the_special_one_with_the_same_bytes() -> None:
    assert ids_by_bytes([b"A", b"B", b"A", b""], last_ids=[0]) == {b"A": 2, b"B": 1}


def test_tokenizer_that_rewrites_the_text_is_refused(tiny_student: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    ids = answer_ids(tokenizer, "lower")
    with pytest.raises(StageFailedError) as raised:
        token_ends(ids, token_bytes(tokenizer), b"LOWER")
    assert str(raised.value) == (
        "The tokenizer does not give a text of 5 bytes back: it differs from byte 0 on. Only tokenizers that keep "
        "every byte (byte-level BPE, SentencePiece without normalisation) can be distilled."
    )


def test_kind_of_tokenizer_that_does_not_spell_is_refused() -> None:
    from tokenizers import Tokenizer, models

    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    with pytest.raises(StageFailedError) as raised:
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=wordpiece))
    assert str(raised.value).endswith(
        "is a WordPiece tokenizer, whose tokens do not spell the text. Only BPE and Unigram can be distilled; "
        "use a model with one of these."
    )


@pytest.mark.parametrize("family", ["llama 2", "gemma", "unigram"])
def test_byte_fallback_stands_behind_the_piece_that_texts_are_cut_into(family: str) -> None:
    """`<0x2E>` comes before `.` in Llama 2, Mistral, Phi-3 and Gemma, and no text is ever cut into it."""
    tokenizer, pieces = pieces_of(family)
    ids = ids_by_bytes(pieces, [*tokenizer.all_special_ids, *fallback_ids(tokenizer)])
    used = answer_ids(tokenizer, "The answer is 42. What is the answer?")
    assert fallback_ids(tokenizer)
    assert {ids[pieces[number]] for number in used} == set(used)
