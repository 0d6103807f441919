"""Whatever people send and by whatever rules: all records accounted for, nobody and no question in two splits."""

from __future__ import annotations

import gzip
import random
import tempfile
from datetime import timedelta
from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.curation_frames import (
    PARQUET,
    START,
    accounted,
    content_of,
    curated,
    curated_file,
    in_two_splits,
    record,
    table,
)

from everswarm.errors import NotEnoughFeedbackError
from everswarm.schemas.dataset import SPLITS, FrozenInteraction
from everswarm.settings import CurationRules
from everswarm.training.curation import LocalEngine
from everswarm.training.curation.split import (
    TARGET_PERCENT,
    assign_users,
    cap_training,
    drop_over_user_share,
    largest_fair_sizes,
    take_from_heaviest,
)

QUESTIONS = (*["Question {}"] * 5, "question  {} ?", "Was ist denn die Antwort auf die Frage {}?", "?!", "🙂" * 3, "")
CORRECTIONS = (*["right {}"] * 5, "also right", None, None, None, " ", "I'm sorry, but I can't help with that.")


@st.composite
def feedback(draw: st.DrawFn) -> list[FrozenInteraction]:
    """Draw what a few people sent, mostly usable, with everything in it that may be wrong."""
    chance = random.Random(draw(st.integers(0, 10_000)))
    users, questions = draw(st.integers(1, 30)), draw(st.integers(1, 200))
    return [sent(number, chance, users=users, questions=questions) for number in range(draw(st.integers(0, 250)))]


def sent(index: int, chance: random.Random, *, users: int, questions: int) -> FrozenInteraction:
    number = chance.randrange(questions)
    correction = chance.choice(CORRECTIONS)
    return record(
        index,
        user=f"u{int(users * chance.random() ** 2)}",
        question=chance.choice(QUESTIONS).format(number),
        response=chance.choice(["an answer", f"answer {number}", " ", None]),
        correction=correction and correction.format(number),
        rating=chance.choice([None, 1, 3, 4, 5]),
        consent=chance.random() < 0.9,
        liked=chance.choice([None, None, True, False]),
        review=chance.choice([*[None] * 8, "accepted", "rejected"]),
        looked_up=chance.random() < 0.1,
        written_by=chance.choice(["person", "person", "swarm"]),
        better_than=chance.choice([[], [], ["a worse one", "an answer"]]),
        judge_score=chance.choice([None, chance.random()]),
        timestamp=START + timedelta(days=chance.randrange(28)),
    )


shares = st.sampled_from([0.3, 0.7, 1.0, 1.0])
all_rules = st.builds(
    CurationRules,
    languages=st.sampled_from([[], [], ["en", "de"]]),
    max_characters=st.sampled_from([20, 8_000, 8_000]),
    quality=st.booleans(),
    minimum_judge_score=st.sampled_from([None, None, 0.4]),
    near_duplicate=st.sampled_from([0.3, 0.8, 0.8, 1.0]),
    poisoning_defence=st.booleans(),
    max_user_share=st.sampled_from([0.01, 0.05, 0.3, 1.0]),
    max_task_share=shares,
    max_language_share=shares,
    max_source_share=shares,
    fresh_days=st.sampled_from([0, 7]),
    max_replay_share=shares,
)
pins = st.dictionaries(st.sampled_from([f"u{number}" for number in range(12)]), st.sampled_from(SPLITS), max_size=6)
caps = st.none() | st.integers(1, 40)


@given(feedback(), all_rules | st.just(CurationRules()), pins, st.integers(0, 5), caps)
@settings(max_examples=80, deadline=None)
def test_dataset_accounts_for_all_and_never_shares_a_user_or_a_question(records, rules, pinned, seed, cap):
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = curated(
                Path(folder), records, rules=rules, seed=seed, minimum_examples=3, train_examples=cap, pinned=pinned
            )
        except NotEnoughFeedbackError:
            return
        card, examples = result.card, table(result.files, "examples")
        unusable = {each.id for each in records if not each.consent or each.review == "rejected"}

        assert card.read == len(records) == accounted(result)
        assert len(examples) == sum(card.examples.values()) == sum(card.sources.values())
        assert all(card.examples[split] > 0 for split in SPLITS)
        assert in_two_splits(result.files) == {}
        assert all(abs(card.shares[split] - TARGET_PERCENT[split] / 100) <= 0.0301 for split in SPLITS)
        assert pinned.items() <= result.split_of_user.items()
        assert cap is None or card.examples["train"] <= cap
        most = max(rules.max_user_share, 2 / card.users["train"], 1 / card.examples["train"])
        assert card.largest_user_share <= most + 0.0001
        for name in PARQUET:
            rows = table(result.files, name)
            assert not unusable & set(rows["id"])
            assert all(result.split_of_user[user] == split for user, split in rows.select("user", "split").iter_rows())
        lines = gzip.decompress(result.files.members.read_bytes()).decode().splitlines()
        everybody = {row for name in PARQUET for row in table(result.files, name).select("id", "user").iter_rows()}
        assert [tuple(line.split("\t")) for line in lines] == sorted(everybody)


@given(feedback(), all_rules, st.integers(2_000, 40_000))
@settings(max_examples=20, deadline=None)
def test_size_of_the_pieces_changes_no_byte(records, rules, piece_bytes):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            whole = curated(folder, records, rules=rules, minimum_examples=3)
        except NotEnoughFeedbackError:
            return
        cut = curated_file(
            folder / "snapshot.jsonl",
            folder / "cut",
            rules=rules,
            minimum_examples=3,
            engine=LocalEngine(piece_bytes=piece_bytes),
        )
        assert content_of(cut.files) == content_of(whole.files)
        assert cut.card == whole.card
        assert cut.split_of_user == whole.split_of_user


@given(st.fixed_dictionaries({split: st.integers(0, 60) for split in SPLITS}))
@settings(max_examples=60, deadline=None)
def test_fair_sizes_are_the_largest_that_fit(available):
    sizes = largest_fair_sizes(available)

    def fits(train: int, validation: int, test: int) -> bool:
        total = train + validation + test
        within = all(
            abs(size * 100 - total * TARGET_PERCENT[split]) <= 3 * total
            for split, size in zip(SPLITS, (train, validation, test), strict=True)
        )
        return min(train, validation, test) > 0 and within

    best = max(
        (
            train + validation + test
            for train in range(available["train"] + 1)
            for validation in range(min(available["validation"], train) + 1)
            for test in range(min(available["test"], train) + 1)
            if fits(train, validation, test)
        ),
        default=0,
    )
    assert sum(sizes.values()) == best
    assert all(sizes[split] <= available[split] for split in SPLITS)


@given(st.dictionaries(st.integers(0, 200).map("u{}".format), st.integers(1, 500), min_size=3), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_user_has_one_split_and_no_split_stays_empty(records_of_user, seed):
    assigned = assign_users(records_of_user, pinned={}, seed=seed)

    assert assigned.keys() == records_of_user.keys()
    assert set(assigned.values()) == set(SPLITS)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1), st.integers(0, 3), st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_taken_is_taken_from_whoever_has_most(counts, seed, data):
    size = data.draw(st.integers(0, sum(counts.values())))
    left = take_from_heaviest(counts, size=size, seed=seed)

    assert sum(left.values()) == size
    assert all(0 <= left[user] <= counts[user] for user in counts)
    most = max(left.values())
    assert all(left[user] >= most - 1 for user in counts if left[user] < counts[user])


def test_heaviest_user_goes_to_training_and_no_split_stays_empty():
    assigned = assign_users({"heavy": 100, "b": 3, "c": 2}, pinned={}, seed=0)

    assert assigned["heavy"] == "train"
    assert set(assigned.values()) == set(SPLITS)


def test_pinned_user_keeps_the_split_though_it_has_too_much_then():
    assigned = assign_users({"heavy": 100, "b": 3, "c": 2}, pinned={"heavy": "test"}, seed=0)

    assert assigned["heavy"] == "test"
    assert set(assigned.values()) == set(SPLITS)


def frame_of(counts: dict[str, int], *, split: str = "train") -> pl.DataFrame:
    users = [user for user, count in counts.items() for _ in range(count)]
    return pl.DataFrame({"user": users, "id": [f"r{number:04d}" for number in range(len(users))]}).with_columns(
        split=pl.lit(split), dropped=pl.lit(None, pl.String), rank=pl.col("id").hash(seed=1)
    )


def kept_of(frame: pl.DataFrame) -> dict[str, int]:
    return dict(frame.filter(pl.col("dropped").is_null())["user"].value_counts().iter_rows())


def test_training_cap_takes_from_the_heavy_user_and_spares_the_light_one():
    assert kept_of(cap_training(frame_of({"heavy": 20, "light": 2}), 6, seed=0)) == {"heavy": 4, "light": 2}


def test_training_cap_of_more_than_there_is_takes_nothing():
    assert kept_of(cap_training(frame_of({"heavy": 20, "light": 2}), 22, seed=0)) == {"heavy": 20, "light": 2}


def test_user_share_counts_the_training_split_alone():
    crowd = {f"u{number}": 2 for number in range(50)}
    train, test = frame_of({"heavy": 40, **crowd}), frame_of({"heavy": 40, **crowd}, split="test")

    assert kept_of(drop_over_user_share(train, share=0.05)) == {"heavy": 5, **crowd}
    assert kept_of(drop_over_user_share(test, share=0.05)) == {"heavy": 40, **crowd}


def test_split_of_a_user_does_not_depend_on_the_order_of_users():
    counts = {f"u{number}": 1 + number % 4 for number in range(60)}
    backwards = dict(reversed(counts.items()))

    assert assign_users(counts, pinned={}, seed=3) == assign_users(backwards, pinned={}, seed=3)
    assert assign_users(counts, pinned={}, seed=3) != assign_users(counts, pinned={}, seed=4)
