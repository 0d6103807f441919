from __future__ import annotations

from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.feedback.reviews.agreement import agreeing_share, krippendorff_alpha

RECORDS = st.lists(st.lists(st.sampled_from("abc"), max_size=5), max_size=12)

# three people, fifteen records, a star where one said nothing: the example by which tools for alpha are checked
TEXTBOOK = ("*****34121133*3", "1*213343*******", "**21344*21133*4")


def test_example_of_the_textbooks_gives_their_alpha():
    records = [[label for label in labels if label != "*"] for labels in zip(*TEXTBOOK, strict=True)]
    assert krippendorff_alpha(records) == pytest.approx(0.691, abs=0.0005)


def test_two_people_who_disagree_once_in_four_by_hand():
    records = [["accept", "accept"], ["reject", "reject"], ["accept", "reject"], ["accept", "accept"]]
    assert agreeing_share(records) == 0.75
    # labels: 5 accept, 3 reject; observed 2 / 8, expected 2 * 5 * 3 / (8 * 7)
    assert krippendorff_alpha(records) == pytest.approx(1 - (2 / 8) / (30 / 56))


def test_three_people_on_one_record_weigh_as_three_labels_by_hand():
    records = [["a", "a", "b"], ["b", "b"], ["a"]]
    assert agreeing_share(records) == 0.5  # pairs: aa, ab, ab, and bb
    # observed (2 * 2 / 2) / 5, expected 2 * 2 * 3 / (5 * 4); the record with one label does not count
    assert krippendorff_alpha(records) == pytest.approx(1 - (2 / 5) / (12 / 20))


def test_always_the_opposite_is_worse_than_chance():
    alpha = krippendorff_alpha([["a", "b"], ["b", "a"]])
    assert alpha == pytest.approx(1 - 1 / (8 / 12))


@pytest.mark.parametrize("records", [[], [[]], [["a"], ["b"]]])
def test_nobody_to_compare_with_gives_no_number(records: list[list[str]]):
    assert (agreeing_share(records), krippendorff_alpha(records)) == (None, None)


def test_where_all_labels_are_the_same_agreement_cannot_be_told_from_habit():
    assert (agreeing_share([["a", "a"], ["a", "a"]]), krippendorff_alpha([["a", "a"], ["a", "a"]])) == (1, None)


def slow_alpha(records: list[list[str]]) -> float | None:
    """Krippendorff's alpha by going through every ordered pair."""
    paired = [labels for labels in records if len(labels) > 1]
    everything = [label for labels in paired for label in labels]
    expected = sum(one != other for one, other in permutations(everything, 2))
    if not expected:
        return None
    observed = sum(sum(one != other for one, other in permutations(labels, 2)) / (len(labels) - 1) for labels in paired)
    return 1 - (observed / len(everything)) / (expected / (len(everything) * (len(everything) - 1)))


@given(RECORDS)
def test_agreement_is_that_of_all_pairs_and_never_more_than_one(records: list[list[str]]):
    pairs = [one == other for labels in records for one, other in combinations(labels, 2)]
    share, alpha = agreeing_share(records), krippendorff_alpha(records)
    assert share == (sum(pairs) / len(pairs) if pairs else None)
    assert alpha == (None if (slow := slow_alpha(records)) is None else pytest.approx(slow))
    assert alpha is None or (alpha <= 1 and (alpha == 1) == (share == 1))


@given(RECORDS, st.permutations("abc"))
def test_agreement_depends_neither_on_order_nor_on_names(records: list[list[str]], names: list[str]):
    renamed = [[names["abc".index(label)] for label in reversed(labels)] for labels in reversed(records)]
    assert agreeing_share(renamed) == agreeing_share(records)
    alpha = krippendorff_alpha(records)
    assert krippendorff_alpha(renamed) == (None if alpha is None else pytest.approx(alpha))
