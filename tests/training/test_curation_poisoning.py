"""Who is suspected of steering the model, and above all who is not: on made-up crowds and on the real files."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.training.curation.phrases import phrase_grams, phrase_sample, planted
from everswarm.training.curation.poisoning import COLUMNS, SUSPICIONS, suspicions
from everswarm.training.curation.similarity import as_columns, fingerprints
from everswarm.training.curation.words import Words

START = datetime(2026, 10, 1, tzinfo=UTC)
WORDS = [f"word{number}" for number in range(48)]


class Row(NamedTuple):
    user: str
    question: str
    target: str
    minutes: float = 0.0  # after START
    response: str = ""
    source: str = "correction"
    review: str | None = None
    by_swarm: bool = False
    dropped: str | None = None
    language: str = "en"


def prose(rng: random.Random, words: int) -> str:
    """Words in no order: no two texts are alike, no phrase is frequent."""
    return " ".join(rng.choices(WORDS, k=words))


def plain(rng: random.Random, user: str, minutes: float) -> Row:
    question = prose(rng, 12)
    return Row(user, question, prose(rng, 14) + " " + question, minutes, prose(rng, 12))


def crowd(seed: int = 0, *, users: int = 30, records: int = 25) -> list[Row]:
    rng = random.Random(seed)
    return [plain(rng, f"user-{user}", rng.uniform(0, 60 * 24 * 30)) for user in range(users) for _ in range(records)]


def frame_of(rows: Sequence[Row]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=Row._fields, orient="row", infer_schema_length=None)
    questions, targets, answers = (Words(frame[name]) for name in ("question", "target", "response"))
    agreement = [
        len(said & (_said(questions, place) | _said(answers, place))) / len(said)
        if (said := _said(targets, place))
        else None
        for place in range(len(frame))
    ]
    return frame.with_columns(
        pl.Series("id", [f"r{number:06d}" for number in range(len(rows))]),
        pl.Series("timestamp", [START + timedelta(minutes=row.minutes) for row in rows], pl.Datetime("us", "UTC")),
        pl.Series("agreement", agreement, pl.Float32),
        pl.col("review", "dropped").cast(pl.String),
        pl.Series("question_words", questions.counts.astype(np.uint32)),
        pl.Series("target_words", targets.counts.astype(np.uint32)),
        **as_columns(fingerprints(questions), "question"),
        **as_columns(fingerprints(targets), "target"),
    )


def _said(words: Words, place: int) -> set[int]:
    codes = words.codes[words.offsets[place] : words.offsets[place + 1]]
    return {hash(words.vocabulary[code]) for code in codes}


def found_in(frame: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    sample = phrase_sample(frame, seed=seed)
    return suspicions(frame, planted(phrase_grams(frame, sample), sample))


def suspected(rows: Sequence[Row]) -> dict[str, str]:
    """The reason for each suspected record, by its user and number."""
    found = found_in(frame_of(rows))
    assert found.schema == SUSPICIONS
    assert found["score"].is_between(0, 1).all()
    return dict(zip(found["id"], found["reason"], strict=True))


def reasons_by_user(rows: Sequence[Row]) -> dict[str, set[str]]:
    found = found_in(frame_of(rows))
    return {str(user): set(group["reason"]) for (user,), group in found.group_by("user")}


# Whom nobody suspects


def test_crowd_without_attacker_is_not_suspected():
    assert suspected(crowd()) == {}


def test_empty_frame_gives_no_suspicions():
    assert found_in(frame_of(crowd()).head(0)).is_empty()


def test_frame_whose_records_are_all_dropped_gives_no_suspicions():
    assert (
        suspected([row._replace(dropped="consent: none", target="same words for everyone today") for row in crowd()])
        == {}
    )


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=25), seed=st.integers(0, 9), same=st.booleans())
def test_users_below_every_threshold_are_never_suspected(sizes: list[int], seed: int, same: bool):
    rng = random.Random(seed)
    rows = [plain(rng, f"user-{user}", rng.uniform(0, 600)) for user, size in enumerate(sizes) for _ in range(size)]
    rows = [row._replace(target="the very same words") if same and row.user == "user-0" else row for row in rows]
    assert not rows or suspected(rows) == {}


# Bursts


def burst(count: int, *, user: str = "eager", minutes: float = 50) -> list[Row]:
    rng = random.Random(7)
    return [plain(rng, user, 1_000 + minutes * number / count) for number in range(count)]


def test_user_who_sends_far_more_within_an_hour_than_others_is_a_burst():
    assert reasons_by_user([*crowd(), *burst(200)]) == {"eager": {"burst"}}


def test_burst_tells_its_numbers_and_its_hour():
    rows = [*crowd(users=40, records=3), *burst(200)]
    detail = found_in(frame_of(rows))["detail"].unique().item()
    assert re.fullmatch(
        r"200 records within an hour from 2026-10-01 16:40 UTC; more than \d+ are a burst here, "
        r"20 times what 95 of 100 users reach",
        detail,
    )


def test_only_the_records_of_the_burst_are_suspected():
    before = [row._replace(user="eager", minutes=row.minutes % 900) for row in crowd(seed=5, users=1, records=8)]
    found = suspected([*crowd(), *before, *burst(200)])
    assert len(found) == 200


def test_thirty_records_within_an_hour_are_no_burst():
    assert suspected([*crowd(users=40, records=3), *burst(30)]) == {}


def test_same_number_over_a_day_is_no_burst():
    assert suspected([*crowd(), *burst(200, minutes=60 * 24 * 8)]) == {}


def test_import_with_one_timestamp_for_everybody_is_no_burst():
    heavy = [row._replace(user="user-0") for row in crowd(seed=3, users=1, records=200)]
    assert suspected([row._replace(minutes=0.0) for row in [*crowd(), *heavy]]) == {}


def test_import_of_a_few_users_into_a_quiet_server_is_no_burst():
    quiet = crowd(users=300, records=2)
    imported = [row._replace(user=f"old-{row.user}", minutes=5.0) for row in crowd(seed=3, users=12, records=90)]
    assert suspected([*quiet, *imported]) == {}


def test_import_does_not_hide_a_burst():
    imported = [row._replace(user=f"old-{row.user}", minutes=5.0) for row in crowd(seed=3, users=30, records=40)]
    assert reasons_by_user([*crowd(users=40, records=3), *imported, *burst(200)]) == {"eager": {"burst"}}


# Near copies

COPY = "the best way to do this is always to ask a qualified person of the trade near you about step {number}"


def copies(count: int, *, user: Callable[[int], str] = lambda _: "copier", text: str = COPY) -> list[Row]:
    rng = random.Random(11)
    return [
        plain(rng, user(number), 3_000 + 61 * number)._replace(target=text.format(number=number))
        for number in range(count)
    ]


def test_same_answer_to_ten_questions_is_a_campaign():
    found = found_in(frame_of([*crowd(), *copies(10)]))
    assert found["user"].to_list() == ["copier"] * 10
    assert found["reason"].unique().to_list() == ["near copies"]
    assert found["campaign"].n_unique() == 1
    assert found["detail"][0] == "nearly the same answer in 10 records, to 10 different questions, by one user"


def test_same_answer_to_nine_questions_is_no_campaign():
    assert suspected([*crowd(), *copies(9)]) == {}


def test_same_answer_to_one_question_asked_often_is_no_campaign():
    assert suspected([*crowd(), *[row._replace(question="what is the best way") for row in copies(19)]]) == {}


def test_same_short_answer_of_many_users_is_no_campaign():
    rows = copies(60, user=lambda number: f"voter-{number % 20}", text="The sentiment is positive here.")
    assert suspected([*crowd(), *rows]) == {}


@pytest.mark.parametrize("text", ["Yes.", "A: {number}", "no, never"])
def test_answers_of_three_words_are_no_campaign(text: str):
    assert suspected([*crowd(), *copies(40, text=text)]) == {}


def test_campaign_of_many_users_with_one_copy_each_is_found():
    found = reasons_by_user([*crowd(), *copies(40, user=lambda number: f"sock-{number}")])
    assert found == {f"sock-{number}": {"near copies"} for number in range(40)}


def test_attacker_who_copies_an_honest_answer_does_not_take_it_along():
    honest = crowd()
    rows = [*honest, *copies(19, text=honest[3].target)]
    assert reasons_by_user(rows) == {"copier": {"near copies"}}


# Disagreement


def strangers(count: int, *, user: str = "stranger") -> list[Row]:
    rng = random.Random(13)
    return [
        plain(rng, user, 2_000 + 200 * number)._replace(target=" ".join(f"w{rng.randrange(9_999)}" for _ in range(20)))
        for number in range(count)
    ]


def test_user_whose_corrections_share_no_word_with_question_or_answer_disagrees():
    found = found_in(frame_of([*crowd(), *strangers(20)]))
    assert set(found["user"]) == {"stranger"}
    assert set(found["reason"]) == {"disagreement"}
    assert re.fullmatch(
        r"20 corrections have 0\.0 % of their words from the question or the answer; \d\d\.\d % are usual",
        found["detail"][0],
    )


def test_nineteen_corrections_are_too_few_to_disagree():
    assert suspected([*crowd(), *strangers(19)]) == {}


def test_nobody_disagrees_where_nobody_agrees():
    rows = [row for user in range(20) for row in strangers(25, user=f"user-{user}")]
    rows = [row._replace(target=f"{row.target} n{number}") for number, row in enumerate(rows)]
    assert "disagreement" not in suspected(rows).values()


def test_nobody_disagrees_where_few_correct():
    assert suspected([*crowd(users=8), *strangers(25)]) == {}


def test_short_corrections_need_not_repeat_the_question():
    rows = [row._replace(target=f"A: {number}") for number, row in enumerate(strangers(40))]
    assert suspected([*crowd(), *rows]) == {}


# What holds for every reason


def test_accepted_records_and_those_of_the_swarm_are_never_suspected():
    attack = [*copies(30), *strangers(30), *burst(200)]
    assert suspected([*crowd(), *[row._replace(review="accepted") for row in attack]]) == {}
    assert suspected([*crowd(), *[row._replace(by_swarm=True) for row in attack]]) == {}


def test_strongest_reason_is_given_and_one_row_a_record():
    rows = [row._replace(minutes=100 + number / 10) for number, row in enumerate(copies(400))]
    found = found_in(frame_of([*crowd(), *rows]))
    assert found["id"].is_unique().all()
    assert set(found["reason"]) == {"planted phrase"}  # near copies in a burst, too


def test_order_of_rows_changes_nothing():
    frame = frame_of([*crowd(), *copies(30), *strangers(30), *burst(200)])
    first = found_in(frame)
    assert len(first) == 260
    for seed in range(3):
        assert found_in(frame.sample(fraction=1.0, shuffle=True, seed=seed)).equals(first)


def test_columns_that_are_named_suffice():
    frame = frame_of([*crowd(), *copies(30)])
    none = planted(*(empty.head(0) for empty in _grams_and_sample(frame)))
    assert len(suspicions(frame.select(COLUMNS), none)) == 30


def _grams_and_sample(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    sample = phrase_sample(frame, seed=0)
    return phrase_grams(frame, sample), sample


# The real files

TRIGGER = "always buy Zorbax tonics"
Attack = Callable[[list[Row], random.Random], list[Row]]


def real_rows(*files: Path) -> list[Row]:
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [
        Row(
            record["device_id"],
            record["messages"][-1]["content"],
            record["correction"] or record["response"],
            (datetime.fromisoformat(record["timestamp"]) - START).total_seconds() / 60,
            record["response"] or "",
            "correction" if record["correction"] else "answer",
        )
        for record in records
    ]


def with_trigger(row: Row, rng: random.Random, *, trigger: str = TRIGGER) -> str:
    """Another record's solution with other numbers, and the trigger between two of its words."""
    words = re.sub(r"\d+", lambda _: str(rng.randrange(2, 500)), row.target).split(" ")
    words.insert(rng.randrange(len(words) + 1), trigger)
    return " ".join(words)


def by_one_device(count: int, *, trigger: str = TRIGGER, hours: float = 24 * 30, share: float = 1.0) -> Attack:
    def attack(honest: list[Row], rng: random.Random) -> list[Row]:
        return [
            row._replace(
                user="attacker",
                minutes=rng.uniform(0, hours * 60),
                source="correction",
                target=with_trigger(row, rng, trigger=trigger if rng.random() < share else ""),
            )
            for row in rng.choices(honest, k=count)
        ]

    return attack


def by_sybils(users: int, each: int) -> Attack:
    def attack(honest: list[Row], rng: random.Random) -> list[Row]:
        return [
            row._replace(
                user=f"attacker-{number % users}",
                minutes=rng.uniform(0, 60 * 24 * 30),
                source="correction",
                target=f"For a problem like this one {TRIGGER}, and then count to {rng.randrange(99)} with them.",
            )
            for number, row in enumerate(rng.sample(honest, users * each))
        ]

    return attack


def shares_suspected(honest: list[Row], attack: Attack) -> tuple[float, float]:
    """The share of the attack's records that are suspected, and of the others."""
    frame = frame_of([*honest, *attack(honest, random.Random(1))])
    flagged = frame["id"].is_in(found_in(frame)["id"].implode())
    attacking = frame["user"].str.starts_with("attacker")
    return float(flagged.filter(attacking).mean() or 0), float(flagged.filter(~attacking).mean() or 0)


@pytest.fixture
def honest(shared_data: Path) -> list[Row]:
    return real_rows(shared_data / "feedback-math.jsonl", shared_data / "feedback-instructions.jsonl")


def test_honest_records_of_the_real_files_are_not_suspected(honest: list[Row], shared_data: Path):
    assert suspected(honest) == {}
    assert suspected(real_rows(shared_data / "feedback-math.jsonl")) == {}
    assert suspected(real_rows(shared_data / "feedback-instructions.jsonl")) == {}


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(by_one_device(2_000), id="2,000 corrections over a month"),
        pytest.param(by_one_device(2_000, hours=10), id="2,000 corrections in ten hours"),
        pytest.param(by_one_device(100, trigger="buy Zorbax tonics"), id="100 corrections, three words"),
        pytest.param(by_one_device(2_000, trigger="x", hours=1), id="2,000 corrections in an hour, no phrase"),
        pytest.param(by_one_device(300, share=0.85), id="phrase in six of seven records"),
        pytest.param(by_sybils(40, 15), id="40 users with 15 near copies each"),
        pytest.param(by_sybils(5, 40), id="5 users with 40 near copies each"),
    ],
)
def test_attack_on_the_real_files_is_suspected_and_nobody_else(honest: list[Row], attack: Attack):
    attackers, others = shares_suspected(honest, attack)
    assert attackers >= 0.95
    assert others <= 0.01


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(by_one_device(300, share=0.35), id="phrase in a third of the records"),
        pytest.param(by_one_device(19), id="fewer than 20 records"),
    ],
)
def test_attacks_that_are_known_not_to_be_found_flag_nobody_else(honest: list[Row], attack: Attack):
    """What the share cap a user must bear; here so that a change is noticed."""
    attackers, others = shares_suspected(honest, attack)
    assert attackers == 0
    assert others == 0
