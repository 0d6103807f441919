"""What becomes a dataset, what is dropped, and that every record is accounted for."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from everswarm.errors import BadRequestError, NotEnoughFeedbackError
from everswarm.schemas.interaction import JudgedInteraction, Message
from everswarm.training.curation import curate, read_examples, read_snapshot, write_examples

START = datetime(2026, 1, 1, tzinfo=UTC)
SNAPSHOT = "0" * 64
REAL_MATH = Path(__file__).parents[2].parent / "shared" / "data" / "feedback-math.jsonl"


def record(number: int, *, user: str = "u", question: str | None = None, **fields: Any) -> JudgedInteraction:
    fields = {"correction": f"answer {number}", "consent": True} | fields
    return JudgedInteraction(
        id=f"r{number:04d}",
        device_id=user,
        timestamp=START + timedelta(minutes=number),
        messages=[Message(role="user", content=question if question is not None else f"question {number}?")],
        **fields,
    )


def crowd(count: int = 40, *, users: int = 20) -> list[JudgedInteraction]:
    return [record(number, user=f"user-{number % users}") for number in range(count)]


def curated(records: list[JudgedInteraction], **options: Any):
    return curate(records, **({"snapshot_sha256": SNAPSHOT, "seed": 0, "minimum_examples": 8} | options))


def dropped(result: Any) -> dict[str, int]:
    return {f"{item.step}: {item.reason}": item.count for item in result.card.dropped}


def test_record_without_consent_is_dropped():
    result = curated([*crowd(), record(900, consent=False)])

    assert dropped(result) == {"consent: no consent to training": 1}
    assert "r0900" not in {example.id for example in result.examples}


def test_correction_wins_over_a_liked_answer_and_an_unliked_answer_teaches_nothing():
    extra = [
        record(900, response="liked", rating=5, correction="corrected"),
        record(901, response=" liked ", rating=4, correction=None),
        record(902, response="meh", rating=3, correction=None),
        record(903, response="unjudged", correction=None),
        record(904, response="liked too", rating=5, correction="   "),
    ]
    result = curated([*crowd(), *extra])
    targets = {example.id: (example.target, example.source) for example in result.examples}

    assert targets["r0900"] == ("corrected", "correction")
    assert targets["r0901"] == ("liked", "answer")
    assert targets["r0904"] == ("liked too", "answer")
    assert dropped(result) == {"target: nothing to learn from": 2}


def test_blank_and_overlong_texts_are_dropped_with_their_reason():
    extra = [
        record(900, question="  \n"),
        record(901, response=" ", rating=5, correction=None),
        record(902, question="q" * 8001),
        record(903, correction="a" * 8001),
        record(904, question="q" * 8000, correction="a" * 8000),
    ]
    result = curated([*crowd(), *extra])

    assert dropped(result) == {
        "length: blank question": 1,
        "length: blank target": 1,
        "length: conversation over 8000 characters": 1,
        "length: target over 8000 characters": 1,
    }


def test_one_record_a_question_prefers_a_correction_then_the_earliest():
    extra = [
        record(900, question="Why  IS it so?", response="first", rating=5, correction=None),
        record(902, question="why is\nit so?", correction="later correction"),
        record(901, question="Why is it so?", correction="earlier correction"),
        record(903, question="Why is it so?", correction="earlier correction"),
    ]
    result = curated([*crowd(), *extra])
    kept = [example for example in result.examples if int(example.id[1:]) >= 900]

    assert [example.id for example in kept] == ["r0901"]
    assert dropped(result) == {
        "duplicates: same conversation and target": 1,
        "questions: question already kept": 2,
    }


def test_same_last_question_after_another_history_is_another_question():
    history = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello")]
    follow_up = record(900, question="question 1?").model_copy(
        update={"messages": [*history, Message(role="user", content="question 1?")]}
    )
    assert dropped(curated([*crowd(), follow_up])) == {}


def test_training_cap_is_counted_and_leaves_shares_and_other_splits_alone():
    free, capped = curated(crowd(200)), curated(crowd(200), train_examples=50)

    assert capped.card.examples["train"] == 50
    assert capped.card.shares == free.card.shares
    assert [e for e in capped.examples if e.split != "train"] == [e for e in free.examples if e.split != "train"]
    assert dropped(capped)["training cap: over 50 training examples"] == free.card.examples["train"] - 50


def test_users_of_an_earlier_dataset_keep_their_split():
    first = curated(crowd(100))
    later = curated(
        [*crowd(100), *(record(n, user=f"new-{n % 9}") for n in range(500, 600))], pinned=first.split_of_user
    )

    assert first.split_of_user.items() <= later.split_of_user.items()
    assert all(example.split == later.split_of_user[example.user] for example in later.examples)


def test_pinned_user_who_sent_nothing_this_time_stays_pinned():
    assert curated(crowd(), pinned={"gone": "test"}).split_of_user["gone"] == "test"


def test_too_little_feedback_says_how_much_there_is_how_much_is_needed_and_what_was_dropped():
    records = [*crowd(10, users=10), record(900, consent=False)]
    with pytest.raises(NotEnoughFeedbackError) as caught:
        curated(records, minimum_examples=24)

    assert "found 10 examples to learn from, and needs 24" in str(caught.value)
    assert "consent: 1 (no consent to training)" in str(caught.value)


def test_two_people_cannot_fill_three_splits():
    with pytest.raises(NotEnoughFeedbackError, match="at least 3 people"):
        curated(crowd(100, users=2))


def test_no_feedback_at_all_is_the_same_error():
    with pytest.raises(NotEnoughFeedbackError, match="found 0 examples"):
        curated([])


def test_same_records_in_any_order_give_the_same_bytes(tmp_path: Path):
    for name, records in (("a", crowd(300)), ("b", crowd(300)[::-1])):
        write_examples(curated(records, train_examples=100).examples, tmp_path / name)

    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in "ab"}
    assert len(digests) == 1


def test_another_seed_chooses_other_training_examples():
    one, other = (curated(crowd(300), train_examples=50, seed=seed) for seed in (1, 2))
    assert one.examples != other.examples


def test_examples_come_back_from_the_file_as_they_were(tmp_path: Path):
    examples = curated([*crowd(), record(900, question="Größe 很大?", correction='"é"\n')]).examples
    write_examples(examples, tmp_path / "data.parquet")

    assert read_examples(tmp_path / "data.parquet") == examples
    assert read_examples(tmp_path / "data.parquet", "test") == [e for e in examples if e.split == "test"]


def test_snapshot_reads_back_and_names_a_broken_line(tmp_path: Path):
    path = tmp_path / "snapshot.jsonl"
    records = crowd(3)
    path.write_text("\n".join(item.model_dump_json() for item in records), encoding="utf-8")
    assert list(read_snapshot(path)) == records

    path.write_text(records[0].model_dump_json() + '\n{"id": "x"}\n', encoding="utf-8")
    with pytest.raises(BadRequestError, match=r"snapshot\.jsonl, line 2: device_id: Field required"):
        list(read_snapshot(path))


@pytest.mark.skipif(not REAL_MATH.exists(), reason="../shared/data is not here")
def test_real_feedback_keeps_every_question_once_within_three_points():
    records = list(read_snapshot(REAL_MATH))
    result = curated(records, train_examples=400)

    assert result.card.read == 4000
    assert result.card.examples["train"] == 400
    assert sum(result.card.examples.values()) + sum(item.count for item in result.card.dropped) == 4000
    assert abs(result.card.shares["train"] - 0.8) <= 0.03
    assert not any(item.step == "split" for item in result.card.dropped)
