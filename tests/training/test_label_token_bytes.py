from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from everswarm.errors import StageFailedError
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training.chat_tokens import answer_ids
from everswarm.training.distillation.prompts import end_of_turn_id
from everswarm.training.distillation.token_bytes import byte_spans, ids_by_bytes, token_bytes
from everswarm.training.models import student_weights

hard_texts = ["<|im_end|>", "a\n\n1. b", "x  12", " 中文 ½", "🏳️‍🌈", "\x00\x7f", "\U000409df\U00065000"]
any_text = st.text(max_size=60) | st.sampled_from(hard_texts)


def test_tokens_of_any_text_spell_its_bytes(tiny_student: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    check_any_text(tokenizer, token_bytes(tokenizer))


@pytest.mark.model
def test_tokens_of_any_text_spell_its_bytes_on_the_embedded_model() -> None:
    tokenizer = AutoTokenizer.from_pretrained(student_weights(EMBEDDED_MODEL, load_settings().models_dir).folder)
    pieces = token_bytes(tokenizer)
    check_any_text(tokenizer, pieces)
    assert len(pieces) == 49_152
    assert pieces[end_of_turn_id(tokenizer)] == b"<|im_end|>"


def check_any_text(tokenizer: PreTrainedTokenizerFast, pieces: list[bytes]) -> None:
    @settings(max_examples=200, deadline=None)
    @given(text=any_text)
    def check(text: str) -> None:
        assert_spells(tokenizer, pieces, text)

    check()


def assert_spells(tokenizer: PreTrainedTokenizerFast, pieces: list[bytes], text: str) -> None:
    # SmolLM2 has no token for a few bytes, and drops them
    data = kept_bytes(text.encode(), pieces)
    ids = answer_ids(tokenizer, text)
    assert b"".join(pieces[number] for number in ids) == data
    spans = byte_spans(ids, pieces, text.encode())
    within = [kept_bytes(text.encode()[start:end], pieces) for start, end in spans]
    assert within == [pieces[number] for number in ids]
    assert not set(ids) & set(tokenizer.all_special_ids)


def kept_bytes(data: bytes, pieces: list[bytes]) -> bytes:
    return b"".join(bytes([byte]) for byte in data if bytes([byte]) in pieces)


def test_byte_without_a_token_lies_in_no_span() -> None:
    pieces = [b"a", b"b"]
    assert byte_spans([0, 1], pieces, b"\x16a\x16\x16b\x16") == [(1, 2), (4, 5)]
    assert byte_spans([], pieces, b"\x16") == []
    with pytest.raises(StageFailedError):
        byte_spans([0], pieces, b"ab")


def sentencepiece_style() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁he", "llo", "l", "é", "A"]
    inner = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_sentencepiece_marks_and_byte_fallback_become_bytes() -> None:
    tokenizer = sentencepiece_style()
    pieces = token_bytes(tokenizer)
    assert pieces[tokenizer.convert_tokens_to_ids("▁he")] == b" he"
    assert pieces[tokenizer.convert_tokens_to_ids("<0xAB>")] == b"\xab"
    assert pieces[tokenizer.convert_tokens_to_ids("é")] == "é".encode()
    assert pieces[tokenizer.convert_tokens_to_ids("</s>")] == b"</s>"


def test_space_that_the_tokenizer_puts_in_front_has_no_span() -> None:
    tokenizer = sentencepiece_style()
    text = "hello €"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    spans = byte_spans(ids, token_bytes(tokenizer), text.encode())
    assert spans[0] == (0, 2)
    assert spans[-1][1] == len(text.encode())
    assert b"".join(text.encode()[start:end] for start, end in spans) == text.encode()


def test_plain_token_wins_over_the_special_one_with_the_same_bytes() -> None:
    tokenizer = sentencepiece_style()
    pieces = token_bytes(tokenizer)
    ids = ids_by_bytes([b"A", b"B", b"A", b""], special_ids=[0])
    assert ids == {b"A": 2, b"B": 1}
    assert ids_by_bytes(pieces, tokenizer.all_special_ids)[b" he"] == tokenizer.convert_tokens_to_ids("▁he")


def test_tokenizer_that_rewrites_the_text_is_refused(tiny_student: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    ids = answer_ids(tokenizer, "lower")
    with pytest.raises(StageFailedError, match="does not give the text back: b'LOWER' became b'lower'"):
        byte_spans(ids, token_bytes(tokenizer), b"LOWER")
