"""Whatever people send: all records accounted for, nobody and no question in two splits, shares kept."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.errors import NotEnoughFeedbackError
from everswarm.schemas.dataset import SPLITS
from everswarm.schemas.interaction import JudgedInteraction, Message
from everswarm.training.curation import curate
from everswarm.training.curation.split import TARGET_PERCENT, assign_users, cap_heavy_users, largest_fair_sizes
from everswarm.training.curation.steps import Pair, question_of

START = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def feedback(draw: st.DrawFn) -> list[JudgedInteraction]:
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 11),  # user
                st.integers(0, 60),  # question
                st.sampled_from([None, "", " ", "right", "also right"]),  # correction
                st.sampled_from([None, 1, 3, 4, 5]),  # rating
                st.booleans() | st.just(True),  # consent
            ),
            max_size=120,
        )
    )
    return [
        JudgedInteraction(
            id=f"r{index}",
            device_id=f"u{user}",
            timestamp=START,
            messages=[Message(role="user", content=f"Question {question}")],
            response="an answer",
            correction=correction or None,
            rating=rating,
            consent=consent,
        )
        for index, (user, question, correction, rating, consent) in enumerate(rows)
    ]


pins = st.dictionaries(st.sampled_from([f"u{n}" for n in range(12)]), st.sampled_from(SPLITS), max_size=6)


@given(feedback(), pins, st.integers(0, 5), st.none() | st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_dataset_accounts_for_all_and_never_shares_a_user_or_a_question(records, pinned, seed, cap):
    try:
        result = curate(
            records, snapshot_sha256="0" * 64, seed=seed, minimum_examples=8, train_examples=cap, pinned=pinned
        )
    except NotEnoughFeedbackError:
        return
    card = result.card
    users, questions = defaultdict(set), defaultdict(set)
    for example in result.examples:
        users[example.user].add(example.split)
        questions[question_of(example.messages)].add(example.split)

    assert card.read == len(records) == sum(card.examples.values()) + sum(item.count for item in card.dropped)
    assert len(result.examples) == sum(card.examples.values()) == sum(card.sources.values())
    assert all(card.examples[split] > 0 for split in SPLITS)
    assert all(len(splits) == 1 for splits in [*users.values(), *questions.values()])
    assert all(abs(card.shares[split] - TARGET_PERCENT[split] / 100) <= 0.03 for split in SPLITS)
    assert pinned.items() <= result.split_of_user.items()
    assert all(result.split_of_user[user] in splits for user, splits in users.items())


@given(st.fixed_dictionaries({split: st.integers(0, 60) for split in SPLITS}))
@settings(max_examples=100, deadline=None)
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


def test_heaviest_user_goes_to_training_and_no_split_stays_empty():
    assigned = assign_users({"heavy": 100, "b": 3, "c": 2}, pinned={}, seed=0)

    assert assigned["heavy"] == "train"
    assert set(assigned.values()) == set(SPLITS)


def test_share_cap_takes_from_the_heavy_user_and_spares_the_light_one():
    message = [Message(role="user", content="q")]
    pairs = [
        Pair(f"{user}-{n}", user, START, message, "a", "correction")
        for user, count in (("heavy", 20), ("light", 2))
        for n in range(count)
    ]
    kept = cap_heavy_users(pairs, size=6, seed=0)

    assert [sum(pair.user == user for pair in kept) for user in ("heavy", "light")] == [4, 2]
