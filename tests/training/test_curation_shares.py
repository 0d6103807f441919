"""How much of a dataset one user, task, language, source or the past may be."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.curation_frames import START, accounted, crowd, curated, dropped, ids_of, record

from everswarm.schemas.dataset import FrozenInteraction
from everswarm.training.curation.shares import EVEN_SHARES, quotas

counts = st.dictionaries(st.integers(0, 30), st.integers(0, 300), max_size=12)


@given(counts, st.sampled_from([0.01, 0.05, 0.2, 0.5, 0.9, 1.0]))
@settings(max_examples=200, deadline=None)
def test_no_group_exceeds_its_share_of_what_stays_and_one_more_would(sizes, share):
    limits = quotas(sizes, share=share)
    allowed = max(share, min(1.0, EVEN_SHARES / max(len(sizes), 1)))
    left = sum(limits.values())

    assert limits.keys() == sizes.keys()
    assert all(0 <= limits[group] <= sizes[group] for group in sizes)
    assert all(limits[group] <= allowed * left for group in sizes)
    level = max(limits.values(), default=0)
    more = {group: min(size, level + 1) for group, size in sizes.items()}
    assert more == limits or level + 1 > allowed * sum(more.values())


@given(st.integers(0, 500), st.integers(0, 500), st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_one_capped_group_is_measured_against_all_that_stays(capped, rest, share):
    limits = quotas({True: capped, False: rest}, share=share, only=True)

    assert limits.keys() == {True}
    assert limits[True] <= share * (limits[True] + rest)
    assert limits[True] == capped or limits[True] + 1 > share * (limits[True] + 1 + rest)


def mixed() -> list[FrozenInteraction]:
    """150 greetings in English and 50 sums in German, liked answers, of 20 users."""
    greetings = [
        record(number, user=f"user-{number % 20}", question=f"Hello there, my friend number {number}!", language="en")
        for number in range(150)
    ]
    sums = [
        record(
            number,
            user=f"user-{number % 20}",
            question=f"Berechne {number} + {number}",
            correction=None,
            response=f"{2 * number}",
            rating=5,
            language="de",
        )
        for number in range(150, 200)
    ]
    return [*greetings, *sums]


@pytest.mark.parametrize("what", ["task", "language", "source"])
def test_share_of_one_group_is_capped_and_counted(tmp_path: Path, what: str):
    free = curated(tmp_path, mixed(), rules={"max_user_share": 1})
    result = curated(tmp_path, mixed(), rules={f"max_{what}_share": 0.6, "max_user_share": 1})

    assert sorted(getattr(free.card, f"{what}s").values()) == [50, 150]
    assert sorted(getattr(result.card, f"{what}s").values()) == [50, 75]
    assert dropped(result) == {f"balance: {what} over 60% of the dataset": 75}
    assert accounted(result) == 200


def test_share_below_an_even_one_leaves_the_groups_even(tmp_path: Path):
    result = curated(tmp_path, mixed(), rules={"max_language_share": 0.1, "max_user_share": 1})

    assert result.card.languages == {"de": 50, "en": 50}


def test_only_group_there_is_may_be_everything(tmp_path: Path):
    assert dropped(curated(tmp_path, crowd(), rules={"max_source_share": 0.1})) == {}


def test_dominant_task_of_several_is_capped(tmp_path: Path):
    others = [
        record(200 + number, user=f"user-{number % 20}", question=question.format(number))
        for number in range(20)
        for question in ["Translate number {} into French", "Write a poem about the number {}"][number % 2 :][:1]
    ]
    result = curated(tmp_path, [*mixed(), *others], rules={"max_task_share": 0.5, "max_user_share": 1})
    largest = max(result.card.tasks.values())

    assert largest <= 0.5 * sum(result.card.tasks.values()) + 1
    assert dropped(result)["balance: task over 50% of the dataset"] == 220 - 2 * 70
    assert accounted(result) == 220


def test_old_records_are_replay_and_at_most_their_share(tmp_path: Path):
    old = [record(number, user=f"user-{number % 20}", timestamp=START) for number in range(100)]
    new = [
        record(number, user=f"user-{number % 20}", timestamp=START + timedelta(days=40 + number % 9))
        for number in range(100, 200)
    ]
    rules = {"fresh_days": 14, "max_replay_share": 0.2, "max_user_share": 1}
    result = curated(tmp_path, [*old, *new], rules=rules)

    assert dropped(result) == {"balance: older than 14 days, over 20% of the dataset": 75}
    assert sum(name < "r00100" for name in ids_of(result.files, "examples")) == 25


def test_replay_is_not_capped_where_nothing_is_said_of_it(tmp_path: Path):
    old = [record(number, user=f"user-{number % 20}", timestamp=START - timedelta(days=999)) for number in range(100)]
    records = [*old, *(record(900 + number, user=f"user-{number}") for number in range(20))]

    assert dropped(curated(tmp_path, records, rules={"max_replay_share": 0.1, "max_user_share": 1})) == {}
    assert dropped(curated(tmp_path, records, rules={"fresh_days": 9, "max_user_share": 1})) == {}


def test_which_records_go_depends_on_the_seed_alone(tmp_path: Path):
    heavy = [*crowd(200, users=40), *(record(number, user="heavy") for number in range(500, 700))]
    kept = [
        ids_of(curated(tmp_path, heavy, seed=seed, rules={"poisoning_defence": False}).files, "examples")
        for seed in (1, 1, 2)
    ]
    assert kept[0] == kept[1]
    assert sorted(kept[0]) != sorted(kept[2])
