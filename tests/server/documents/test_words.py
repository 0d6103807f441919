from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.documents.search import postgres_query, postgres_words, sqlite_match
from everswarm.server.documents.words import QUERY_WORDS, WORD_CHARACTERS, beginning_of, words_of, words_of_query


def test_words_are_small_letters_without_accents_whatever_their_form():
    assert list(words_of("Caf\u00e9 CAFE\u0301 and/or x_1 \u4f60\u597d 한국")) == [
        "cafe", "cafe", "and", "or", "x", "1", "\u4f60\u597d", "한국",
    ]  # fmt: skip


def test_stop_words_are_dropped_only_where_others_remain():
    assert words_of_query("What is the deadline for the deadline?") == ["deadline"]
    assert words_of_query("Who is who?") == ["who", "is"]
    assert words_of_query("  ?! 🦆 ") == []


def test_long_query_is_bounded():
    many = " ".join(f"w{number}" for number in range(10_000))
    assert len(words_of_query(many)) == QUERY_WORDS
    assert words_of_query("x" * 100_000) == ["x" * WORD_CHARACTERS]


def test_word_finds_its_plural_and_the_plural_its_word():
    assert beginning_of("invoice") == beginning_of("invoices") == "invoice"
    assert beginning_of("cats") is None and beginning_of("2024") is None


@given(st.text(max_size=300))
def test_no_character_of_a_query_gets_into_the_syntax(query: str):
    words = words_of_query(query)
    for sentence in (sqlite_match("key-1", words), postgres_query(words), postgres_words(query, query)):
        outside = "".join(part for index, part in enumerate(sentence.replace('"', "'").split("'")) if index % 2 == 0)
        assert set(outside) <= set("userANDtitlexOR0123456789 {}:()*|")
    assert all(word.replace("\u0345", "").isprintable() for word in words)
