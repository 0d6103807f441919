from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.documents.passages import OVERLAP_CHARACTERS, PASSAGE_CHARACTERS, split_passages

WORDS = st.text(alphabet="ab.?! 。\n\té", max_size=60)
TEXTS = st.one_of(
    st.text(max_size=3_000),
    st.lists(st.tuples(WORDS, st.integers(1, 60)), max_size=30).map(
        lambda parts: "".join(part * count for part, count in parts)
    ),
)


def without_space(text: str) -> str:
    return "".join(text.split())


@given(TEXTS)
def test_nothing_of_a_text_is_lost_and_passages_stay_small(text: str):
    passages = split_passages(text)
    assert without_space("".join(passage.text[passage.overlap :] for passage in passages)) == without_space(text)
    for passage in passages:
        assert 0 < len(passage.text) - passage.overlap <= PASSAGE_CHARACTERS
        assert 0 <= passage.overlap <= OVERLAP_CHARACTERS
        assert passage.text == passage.text.strip()


@given(TEXTS)
def test_overlap_is_the_end_of_the_passage_before(text: str):
    passages = split_passages(text)
    for before, passage in pairwise(passages):
        assert before.text.endswith(passage.text[: passage.overlap].rstrip())


def test_short_text_is_one_passage():
    assert split_passages("  One. Two.\n\nThree.  ") == [("One. Two.\n\nThree.", 0)]
    assert split_passages(" \n\t ") == []


def test_passage_ends_with_a_paragraph_and_the_next_repeats_its_last_sentence():
    first = "A first sentence. " * 30 + "The last one."
    second = "A second paragraph. " * 20
    one, two = split_passages(f"{first}\n\n{second}")
    assert one.text == first
    assert two.text == f"The last one.\n\n{second.strip()}"
    assert two.text[two.overlap :] == second.strip()


def test_long_paragraph_is_cut_between_sentences():
    passages = split_passages(" ".join(f"This is sentence number {number}." for number in range(200)))
    assert all(passage.text.startswith("This") and passage.text.endswith(".") for passage in passages)
    assert all(passage.overlap for passage in passages[1:])


def test_sentence_without_end_is_cut_between_words_and_a_monster_word_hard():
    words = split_passages("word " * 1_000)
    assert all(set(passage.text.split()) == {"word"} for passage in words)
    monster = split_passages("x" * (2 * PASSAGE_CHARACTERS + 1))
    assert [len(passage.text) - passage.overlap for passage in monster] == [PASSAGE_CHARACTERS, PASSAGE_CHARACTERS, 1]


def test_flood_of_white_space_is_nothing():
    flood = " " * 500_000
    assert [passage.text for passage in split_passages(f"one\n{flood}.{flood}two")] == ["one", ".", "two"]
