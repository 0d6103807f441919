"""What is said of one record: the same whatever stands beside it, and texts only where they may be looked at."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from tests.training.curation_frames import START, crowd, record

from everswarm.errors import BadRequestError
from everswarm.schemas.dataset import FrozenInteraction
from everswarm.schemas.interaction import Message
from everswarm.settings import CurationRules
from everswarm.training.curation import suite_fingerprints
from everswarm.training.curation.marks import counted, told
from everswarm.training.curation.prepare import NARROW, WIDE, Preparation, prepare

SUITE = suite_fingerprints(
    {"owls": [("seven wise owls counted eleven bright stars above the old stone bridge at night", "")]}
)
PLAIN = Preparation(CurationRules(), 0, np.array(SUITE.hashes, dtype=np.uint64), SUITE.words, "snapshot.jsonl")


def lines_of(records: Sequence[FrozenInteraction]) -> list[bytes]:
    return [one.model_dump_json().encode() for one in records]


def prepared(records: Sequence[FrozenInteraction], **changes: object) -> pl.DataFrame:
    return prepare(lines_of(records), 1, PLAIN._replace(**changes))


def only(**fields: object) -> dict[str, object]:
    return prepared([record(1, **fields)]).row(0, named=True)


texts = st.text(st.sampled_from("ab 🙂?\n很é\0\t1"), max_size=12).filter(lambda text: text != "")
records = st.lists(
    st.builds(
        record,
        st.integers(0, 999),
        question=texts,
        response=st.none() | texts,
        correction=st.none() | texts,
        rating=st.none() | st.integers(1, 5),
        consent=st.booleans(),
    ),
    max_size=12,
)


@given(records, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_what_is_said_of_a_record_does_not_depend_on_its_neighbours(given_records, cut):
    lines = lines_of(given_records)
    whole = prepare(lines, 1, PLAIN)
    parts = pl.concat([prepare(lines[:cut], 1, PLAIN), prepare(lines[cut:], 1 + cut, PLAIN)])

    assert_frame_equal(whole, parts)


def test_columns_are_fixed_even_without_lines():
    empty = prepare([b"", b"  \r"], 1, PLAIN)

    assert empty.shape == (0, len(NARROW) + len(WIDE))
    assert {name: empty.schema[name] for name in NARROW} == {
        name: pl.Series([], dtype=kind).dtype for name, kind in NARROW.items()
    }
    assert empty.schema == prepared(crowd(3)).schema


def test_texts_of_records_that_may_not_be_looked_at_are_gone():
    rows = prepared(
        [
            record(1, response="r", better_than=["b"]),
            record(2, response="r", better_than=["b"], consent=False),
            record(3, response="r", better_than=["b"], review="rejected"),
            record(4, response="r", better_than=["b"], question=" "),
            record(5, response="r", better_than=["b"], correction=None),
        ]
    )

    assert rows["usable"].to_list() == [True, False, False, False, True]
    for name in ("messages", "response", "better_than"):
        assert rows[name].is_not_null().to_list() == [True, False, False, False, True]
    assert rows["target"].to_list() == ["answer 1", None, None, None, None]


def test_first_reason_counts_and_the_account_is_in_the_order_of_the_steps():
    rows = prepared(
        [
            record(1, consent=False, review="rejected", question=" "),
            record(2, review="rejected", question=" "),
            record(3, question=" ", correction=None),
            record(4, correction=None),
            record(5),
            record(6, correction=None),
        ]
    )
    account = counted(rows["dropped"])

    assert [(item.step, item.count) for item in account] == [
        ("consent", 1),
        ("review", 1),
        ("length", 1),
        ("target", 2),
    ]
    assert told(account).startswith("consent: 1 (no consent to training); review: 1 (turned down by reviewers); ")
    assert told([]) == "nothing"


def test_agreement_is_the_share_of_the_words_that_question_or_answer_have():
    assert only(question="one two?", response="three", correction="one three four five")["agreement"] == 0.5
    assert only(question="one two?", response=None, correction="five six")["agreement"] == 0
    assert only(question="one two?", correction="One, TWO!")["agreement"] == 1
    assert only(question="one two?", correction="!?")["agreement"] is None
    assert only(question="one two?", response="x", correction=None)["agreement"] is None


def test_agreement_does_not_borrow_words_from_other_records():
    rows = prepared([record(1, question="one", correction="two"), record(2, question="two", correction="one")])
    assert rows["agreement"].to_list() == [0, 0]


def test_suite_text_is_found_in_question_and_in_target():
    owls = "Seven wise owls counted eleven bright stars above the old stone bridge."
    assert only(question=owls)["contaminated"] is False
    assert only(question=owls.replace(".", ", at night."))["contaminated"] is True
    assert only(correction=owls.replace(".", " at: night."))["contaminated"] is True
    history = [Message(role="user", content=f"{owls} AT"), Message(role="user", content="night, you say?")]
    assert only(messages=history)["contaminated"] is True


def test_timestamps_keep_their_microseconds_in_utc():
    assert only(timestamp="2026-01-01T02:00:00.000001+02:00")["timestamp"] == START.replace(microsecond=1)


@pytest.mark.parametrize(("declared", "kept"), [("en", "en"), ("pt-BR", "pt"), ("fil", "und"), (None, "und")])
def test_declared_language_comes_first_where_it_has_two_letters(declared: str | None, kept: str):
    assert only(question="12", correction="34", language=declared)["language"] == kept


def test_language_of_the_target_comes_before_that_of_the_question():
    german = "Das ist eine Antwort, die wir nicht auf Englisch geben, und das ist auch gut so."
    assert only(question="What is the answer to this, and how do you say it?", correction=german)["language"] == "de"
    assert only(question="What is the answer to this, and how do you say it?", correction="42")["language"] == "en"


def test_rank_depends_on_seed_and_id_alone():
    one = prepared([record(1), record(2)])
    shuffled = prepared([record(2, user="other", correction="else"), record(1)])
    other = prepared([record(1), record(2)], seed=1)

    assert one["rank"].to_list() == shuffled["rank"].to_list()[::-1]
    assert one["rank"].to_list() != other["rank"].to_list()


def test_questions_of_the_same_words_have_the_same_fingerprints_and_others_do_not():
    rng = random.Random(0)
    words = [f"word{number}" for number in rng.sample(range(1_000), 30)]
    rows = prepared(
        [
            record(1, question=" ".join(words)),
            record(2, question="\n".join(words).upper() + "!"),
            record(3, question="🙂"),
            record(4, question=" 🙂 "),
            record(5, question="🙁"),
        ]
    )
    bands = rows["question_bands"].to_list()

    assert bands[0] == bands[1]
    assert bands[2] == bands[3]
    assert not set(bands[0]) & set(bands[2])
    assert not set(bands[2]) & set(bands[4])


def test_line_number_counts_blank_lines_and_starts_where_the_piece_does():
    with pytest.raises(BadRequestError, match=r"^snapshot\.jsonl, line 102: the line: Invalid JSON"):
        prepare([*lines_of(crowd(1)), b"", b"{"], 100, PLAIN)
