"""No example holds what the model will be asked in an evaluation."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.training.curation_frames import crowd, curated, dropped, ids_of, record

from everswarm.schemas.dataset import SuiteFingerprints
from everswarm.training.curation import suite_fingerprints

TEXT = "seven wise owls counted eleven bright stars above the old stone bridge before the morning came again"
SHARED = "contamination: shares words with an evaluation suite"


def test_thirteen_shared_words_in_question_or_answer_are_too_many(tmp_path: Path):
    words = TEXT.split()
    extra = [
        record(900, question=f"Tell me: {' '.join(words[:13])}?"),
        record(901, correction=f"So, {' '.join(words[2:15]).upper()}!"),
        record(902, question=f"Tell me: {' '.join(words[:12])}?"),
        record(903, correction=", ".join(words[2:14])),
    ]
    result = curated(
        tmp_path, [*crowd(), *extra], suites=suite_fingerprints({"owls": [(TEXT, "")]}), rules={"max_user_share": 1}
    )

    assert dropped(result) == {SHARED: 2}
    assert {"r00902", "r00903"} <= set(ids_of(result.files, "examples"))


def test_short_suite_text_is_found_only_where_it_is_all_that_was_said(tmp_path: Path):
    extra = [record(900, question="What is 6 x 7?"), record(901, question="What is 6 x 7, and why?")]
    result = curated(tmp_path, [*crowd(), *extra], suites=suite_fingerprints({"sums": [("what is 6 x 7", "42")]}))

    assert dropped(result) == {SHARED: 1}
    assert "r00901" in ids_of(result.files, "examples")


@pytest.mark.parametrize("suites", [None, suite_fingerprints({}), suite_fingerprints({"none": []})])
def test_without_suites_nothing_is_looked_for(tmp_path: Path, suites: SuiteFingerprints | None):
    assert dropped(curated(tmp_path, [*crowd(), record(900, question=TEXT)], suites=suites)) == {}


def test_card_names_the_suites_by_digest(tmp_path: Path):
    suites = suite_fingerprints({"owls": [(TEXT, "")]})
    parents = curated(tmp_path, crowd(), suites=suites).card.parents

    assert parents[1:] == [hashlib.sha256(suites.model_dump_json().encode()).hexdigest()]


def test_fingerprints_do_not_depend_on_the_order_of_texts_or_suites():
    one = suite_fingerprints({"a": [(TEXT, ""), ("another one", "")], "b": [("third", "Negative.")]})
    other = suite_fingerprints({"b": [("third", "Negative.")], "a": [("another one", ""), (TEXT, TEXT), (TEXT, "")]})

    assert one == other
    assert one.hashes == sorted(set(one.hashes))
    assert len(one.hashes) == len(TEXT.split()) - 13 + 1 + 2


def test_fingerprints_survive_the_way_through_json():
    suites = suite_fingerprints({"owls": [(TEXT, "")]})

    assert SuiteFingerprints.model_validate_json(suites.model_dump_json()) == suites


def test_contaminated_record_does_not_stand_in_for_its_clean_copy(tmp_path: Path):
    """The records of one question: a contaminated answer is set aside before the best of them is chosen."""
    extra = [
        record(900, question="Say something of owls.", correction=TEXT),
        record(901, question="Say something of owls.", correction="They fly by night."),
    ]
    result = curated(tmp_path, [*crowd(), *extra], suites=suite_fingerprints({"owls": [(TEXT, "")]}))

    assert dropped(result) == {SHARED: 1}
    assert "r00901" in ids_of(result.files, "examples")


def test_short_answer_of_a_suite_is_everybodys(tmp_path: Path):
    suites = suite_fingerprints({"moods": [("How does 'not my day' sound?", "Negative.")]})
    extra = [record(900 + number, correction="Negative.", question=f"Tone of {number}?") for number in range(3)]
    assert SHARED not in dropped(curated(tmp_path, [*crowd(), *extra], suites=suites))
