"""What becomes a dataset, what is dropped, and that every record is accounted for."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.training.curation_frames import (
    START,
    accounted,
    content_of,
    crowd,
    curated,
    curated_file,
    dropped,
    ids_of,
    record,
    snapshot_of,
    table,
    write_snapshot,
)

from everswarm.errors import BadRequestError, NotEnoughFeedbackError
from everswarm.schemas.interaction import Message
from everswarm.settings import CurationRules
from everswarm.training.curation import read_examples


def test_record_without_consent_is_in_no_file(tmp_path: Path):
    result = curated(tmp_path, [*crowd(), record(900, consent=False, response="no", rating=1, better_than=["worse"])])

    assert dropped(result) == {"consent: no consent to training": 1}
    assert b"r00900" not in b"".join(content for content in content_of(result.files).values() if content)


def test_correction_wins_over_a_liked_answer_and_an_unliked_answer_teaches_nothing(tmp_path: Path):
    extra = [
        record(900, response="liked", rating=5, correction="corrected"),
        record(901, response=" liked ", rating=4, correction=None),
        record(902, response="meh", rating=3, correction=None),
        record(903, response="unjudged", correction=None),
        record(904, response="liked too", rating=5, correction="   "),
        record(905, response="thumb up", liked=True, correction=None),
        record(906, response="thumb down", liked=False, correction=None),
        record(907, response="the stars count", liked=True, rating=2, correction=None),
    ]
    result = curated(tmp_path, [*crowd(100), *extra])
    targets = {example.id: (example.target, example.source) for example in read_examples(result.files.examples)}

    assert targets["r00900"] == ("corrected", "correction")
    assert targets["r00901"] == ("liked", "answer")
    assert targets["r00904"] == ("liked too", "answer")
    assert targets["r00905"] == ("thumb up", "answer")
    assert dropped(result) == {"target: nothing to learn from": 4}


def test_answer_that_rests_on_what_a_tool_found_is_not_learnt_from_but_its_correction_is(tmp_path: Path):
    extra = [
        record(900, response="It is 21 degrees now.", rating=5, correction=None, looked_up=True),
        record(901, response="It is 21 degrees now.", correction="I cannot see a thermometer.", looked_up=True),
    ]
    result = curated(tmp_path, [*crowd(), *extra])

    assert dropped(result) == {"target: rests on what a tool found": 1}
    assert "r00901" in ids_of(result.files, "examples")


def test_blank_and_overlong_texts_are_dropped_with_their_reason(tmp_path: Path):
    extra = [
        record(900, question="  \n"),
        record(901, response=" ", rating=5, correction=None),
        record(902, question="q" * 8001),
        record(903, correction="a" * 8001),
        record(904, question="q" * 8000, correction="a" * 8000),
    ]
    result = curated(tmp_path, [*crowd(), *extra], rules={"quality": False})

    assert dropped(result) == {
        "length: blank question": 1,
        "length: conversation over 8000 characters": 1,
        "length: target over 8000 characters": 1,
        "target: blank target": 1,
    }


def test_length_counts_characters_and_not_bytes(tmp_path: Path):
    extra = [
        record(900, question="很" * 12, correction="大" * 12),
        record(901, question="short?", correction="大" * 13),
        record(902, question="很" * 14),
    ]
    result = curated(tmp_path, [*crowd(), *extra], rules={"max_characters": 12, "quality": False})

    assert dropped(result) == {"length: conversation over 12 characters": 1, "length: target over 12 characters": 1}
    assert "r00900" in ids_of(result.files, "examples")


def test_what_reviewers_turned_down_is_dropped_and_what_they_accepted_stays(tmp_path: Path):
    extra = [record(900, review="rejected", response="bad", rating=1), record(901, review="accepted")]
    result = curated(tmp_path, [*crowd(), *extra])

    assert dropped(result) == {"review: turned down by reviewers": 1}
    assert "r00901" in ids_of(result.files, "examples")
    assert "r00900" not in ids_of(result.files, "desirabilities")


def test_only_wanted_languages_stay_and_what_has_none(tmp_path: Path):
    german = "Das ist eine Antwort, die wir nicht auf Englisch geben, und das ist auch gut so."
    extra = [
        record(900, question="Was ist das für ein Haus?", correction=german),
        record(901, correction="nothing to tell by", language="fr-CA"),
        record(902, correction="nothing to tell by, too", language="en-GB"),
        record(903, question="2 + 2", correction="4"),
    ]
    result = curated(tmp_path, [*crowd(), *extra], rules={"languages": ["en"]})

    assert dropped(result) == {"language: not one of the wanted": 2}
    languages = {example.id: example.language for example in read_examples(result.files.examples)}
    assert (languages["r00902"], languages["r00903"]) == ("en", "und")
    everything = curated(tmp_path, [*crowd(), *extra])
    assert everything.card.languages["de"] == everything.card.languages["fr"] == 1


def test_declared_language_of_three_letters_is_not_taken_for_one_of_two(tmp_path: Path):
    filipino = record(900, question="Kumusta?", correction="Mabuti naman.", language="fil-PH")
    result = curated(tmp_path, [*crowd(), filipino])

    assert {example.id: example.language for example in read_examples(result.files.examples)}["r00900"] == "und"


def test_answer_that_a_judge_scored_too_low_is_dropped_and_one_without_a_score_stays(tmp_path: Path):
    extra = [record(900, judge_score=0.2), record(901, judge_score=0.5), record(902, judge_score=0.9)]
    result = curated(tmp_path, [*crowd(), *extra], rules={"minimum_judge_score": 0.5})

    assert dropped(result) == {"quality: judged below 0.5": 1}
    assert dropped(curated(tmp_path, [*crowd(), *extra])) == {}


def test_refusal_is_dropped_unless_the_rules_say_otherwise(tmp_path: Path):
    refusal = record(900, correction="I'm sorry, but I can't help with that.")

    assert dropped(curated(tmp_path, [*crowd(), refusal])) == {"quality: refusal": 1}
    assert dropped(curated(tmp_path, [*crowd(), refusal], rules={"quality": False})) == {}


def test_weak_signals_are_never_targets(tmp_path: Path):
    extra = [record(900, response="fine", copied=True, regenerated=True, correction=None)]
    result = curated(tmp_path, [*crowd(), *extra])

    assert dropped(result) == {"target: nothing to learn from": 1}
    assert "r00900" not in ids_of(result.files, "desirabilities")


def test_training_cap_is_counted_and_leaves_shares_and_other_splits_alone(tmp_path: Path):
    free, capped = curated(tmp_path / "a", crowd(200)), curated(tmp_path / "b", crowd(200), train_examples=50)
    others = [read_examples(result.files.examples, split) for result in (free, capped) for split in ("test",)]

    assert capped.card.examples["train"] == 50
    assert capped.card.shares == free.card.shares
    assert others[0] == others[1]
    assert dropped(capped)["training cap: over 50 training examples"] == free.card.examples["train"] - 50


def test_one_user_has_at_most_the_capped_share_of_training(tmp_path: Path):
    heavy = [record(number, user="heavy") for number in range(1_000, 1_400)]
    rules = {"max_user_share": 0.05, "poisoning_defence": False}
    result = curated(tmp_path, [*crowd(600, users=60), *heavy], rules=rules)

    assert 0 < result.card.largest_user_share <= 0.05
    assert dropped(result)["user share: over 5% of the training split by one user"] > 300
    assert accounted(result) == result.card.read == 1_000


def test_user_share_is_two_even_shares_where_few_people_train(tmp_path: Path):
    heavy = [record(number, user="user-0") for number in range(1_000, 1_400)]
    result = curated(tmp_path, [*crowd(40, users=10), *heavy], rules={"poisoning_defence": False})

    assert 0.05 < result.card.largest_user_share <= 2 / result.card.users["train"]


def test_users_of_an_earlier_dataset_keep_their_split(tmp_path: Path):
    first = curated(tmp_path, crowd(100))
    newcomers = [record(number, user=f"new-{number % 9}") for number in range(500, 600)]
    later = curated(tmp_path, [*crowd(100), *newcomers], pinned=first.split_of_user)

    assert first.split_of_user.items() <= later.split_of_user.items()
    for name in ("examples", "preferences", "desirabilities"):
        rows = table(later.files, name)
        assert all(later.split_of_user[user] == split for user, split in rows.select("user", "split").iter_rows())


def test_pinned_user_who_sent_nothing_this_time_stays_pinned(tmp_path: Path):
    assert curated(tmp_path, crowd(), pinned={"gone": "test"}).split_of_user["gone"] == "test"


def test_too_little_feedback_says_how_much_there_is_how_much_is_needed_and_what_was_dropped(tmp_path: Path):
    records = [*crowd(10, users=10), record(900, consent=False)]
    with pytest.raises(NotEnoughFeedbackError) as caught:
        curated(tmp_path, records, minimum_examples=24)

    assert str(caught.value) == (
        "10 examples to learn from were found, and 24 are needed, of at least 3 people, so that training, "
        "validation and test share nobody. 10 were usable before the split, of 10 people. Dropped: "
        "consent: 1 (no consent to training). Collect more corrections and ratings of 4 or 5 with consent, then "
        "start a cycle."
    )


@pytest.mark.parametrize("users", [1, 2])
def test_fewer_than_three_people_cannot_fill_three_splits(tmp_path: Path, users: int):
    with pytest.raises(NotEnoughFeedbackError, match=f"of at least 3 people.* usable before the split, of {users} "):
        curated(tmp_path, crowd(100, users=users))


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \r\n\n"])
def test_empty_snapshot_is_too_little_feedback(tmp_path: Path, content: bytes):
    path = tmp_path / "snapshot.jsonl"
    path.write_bytes(content)
    with pytest.raises(NotEnoughFeedbackError, match=r"0 examples to learn.*of 0 people\. Dropped: nothing"):
        curated_file(path, tmp_path / "out")


def test_snapshot_whose_records_are_all_unusable_is_too_little_feedback(tmp_path: Path):
    with pytest.raises(NotEnoughFeedbackError, match=r"consent: 5 \(no consent to training\)"):
        curated(tmp_path, [record(number, consent=False) for number in range(5)])


def test_same_snapshot_gives_the_same_bytes_and_another_seed_other_examples(tmp_path: Path):
    one, again, other = (
        curated(tmp_path / name, crowd(300), train_examples=50, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert content_of(one.files) == content_of(again.files)
    assert one.card == again.card
    assert ids_of(one.files, "examples") != ids_of(other.files, "examples")


def test_card_tells_parents_rules_seed_and_what_was_masked(tmp_path: Path):
    rules = CurationRules(max_user_share=0.5)
    result = curated(tmp_path, crowd(), rules=rules, seed=7, masked={"phone": 2, "email": 1})
    snapshot = snapshot_of(tmp_path / "snapshot.jsonl")

    assert result.card.parents == [snapshot.data.sha256]
    assert (result.card.rules, result.card.seed) == (rules, 7)
    assert list(result.card.masked.items()) == [("email", 1), ("phone", 2)]
    assert sum(result.card.tasks.values()) == sum(result.card.languages.values()) == sum(result.card.examples.values())


def test_conversation_of_200_messages_comes_through(tmp_path: Path):
    turns = [Message(role=("user", "assistant")[turn % 2], content=f"turn {turn}") for turn in range(199)]
    long = record(900, messages=[Message(role="system", content="Be brief."), *turns])
    result = curated(tmp_path, [*crowd(), long])

    assert next(one for one in read_examples(result.files.examples) if one.id == "r00900").messages == long.messages


def test_users_and_ids_of_the_longest_allowed_form_come_through(tmp_path: Path):
    name = "A" + "b.c_d-e/f@g:h+i" * 13
    result = curated(tmp_path, [*crowd(), record(900, id=name, user=name)])

    assert name in ids_of(result.files, "examples")
    assert name in result.split_of_user


def lines_with(tmp_path: Path, *extra: str) -> Path:
    path = write_snapshot(tmp_path / "snapshot.jsonl", crowd(10))
    path.write_text(path.read_text(encoding="utf-8") + "\n".join(extra), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"id": "x"}', "line 11: device_id: Field required"),
        ("{broken", "line 11: the line: Invalid JSON"),
        ('{"id": "é"}', "line 11: id: String should match pattern"),
        ("[]", "line 11: the line: Input should be an object"),
        ("\n\n{broken", "line 13: the line: Invalid JSON"),
        (r'{"id": "\ud800"}', "line 11: the line: Invalid JSON"),
    ],
)
def test_broken_line_is_named(tmp_path: Path, line: str, told: str):
    with pytest.raises(BadRequestError) as caught:
        curated_file(lines_with(tmp_path, line), tmp_path / "out")

    assert str(caught.value).startswith(f"snapshot.jsonl, {told}")
    assert str(caught.value).endswith("Mend or remove the line, then start again.")


def test_line_that_is_no_utf8_is_named(tmp_path: Path):
    path = lines_with(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"id": "\xff"}\n')
    with pytest.raises(BadRequestError, match=r"snapshot\.jsonl, line 11: "):
        curated_file(path, tmp_path / "out")


@pytest.mark.parametrize("number", [9, 4])
def test_lines_out_of_order_or_twice_are_refused(tmp_path: Path, number: int):
    again = record(number, user="other").model_dump_json()
    with pytest.raises(BadRequestError) as caught:
        curated_file(lines_with(tmp_path, again), tmp_path / "out")

    assert str(caught.value) == (
        "snapshot.jsonl should hold each id once, in the order of the ids, and "
        f"'r0000{number}' follows 'r00009'. Sort the lines by id and remove what is there twice."
    )


STRANGE: list[dict[str, Any]] = [
    {"question": "Größe 很大?", "correction": '"é"\n'},
    {"question": "nul \0 tab \t line \n quote ' and", "correction": "a\tb\nc\0d\r\n\u2028e"},
    {"question": "e\u0301 🤷🏽\u200d♀️ \u200b\u202e", "correction": "\u200fעברית\u200e العربية"},
    {"question": "🙂", "correction": "🙃🙃"},
    {"question": "\\u0000 {} {0} %s", "correction": "NaN null None"},
]


def test_strange_texts_come_back_as_they_were(tmp_path: Path):
    extra = [record(900 + number, **fields) for number, fields in enumerate(STRANGE)]
    result = curated(tmp_path, [*crowd(), *extra], rules={"max_user_share": 1})
    found = {example.id: example for example in read_examples(result.files.examples)}

    assert dropped(result) == {}
    for given in extra:
        assert found[given.id].messages == given.messages
        assert found[given.id].target == (given.correction or "").strip()


def test_moments_at_both_ends_of_the_calendar_come_through(tmp_path: Path):
    ends = [record(900, timestamp="0001-01-01T00:00:00Z"), record(901, timestamp="9999-12-31T23:59:59.999999Z")]
    result = curated(tmp_path, [*crowd(), *ends], rules={"fresh_days": 30, "max_replay_share": 0.9})

    assert {"r00900", "r00901"} & set(ids_of(result.files, "examples"))
    assert accounted(result) == 42


def test_progress_tells_the_bytes_read_up_to_all(tmp_path: Path):
    told: list[tuple[int, int]] = []
    curated(tmp_path, crowd(), on_progress=lambda done, total: told.append((done, total)))
    size = (tmp_path / "snapshot.jsonl").stat().st_size

    assert told[-1] == (size, size)


def test_line_of_the_snapshot_is_json_of_a_frozen_interaction(tmp_path: Path):
    path = write_snapshot(tmp_path / "snapshot.jsonl", [record(1, timestamp=START + timedelta(hours=1))])
    assert json.loads(path.read_text(encoding="utf-8"))["timestamp"] == "2026-01-01T01:00:00Z"
