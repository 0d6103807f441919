"""Which answers are better than which, and which were liked: TRL's DPO and KTO data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.training.curation_frames import content_of, crowd, curated, in_two_splits, record, table

from everswarm.schemas.dataset import FrozenInteraction
from everswarm.schemas.interaction import Message
from everswarm.training.curation import read_desirabilities, read_preferences, suite_fingerprints

SUITE = "seven wise owls counted eleven bright stars above the old stone bridge before the morning came again"


def pairs_of(folder: Path, extra: list[FrozenInteraction], **options: Any) -> list[tuple[str, str, str, str]]:
    result = curated(folder, [*crowd(100), *extra], **options)
    found = [] if result.files.preferences is None else read_preferences(result.files.preferences)
    assert sum(result.card.preferences.values()) == len(found)
    return sorted((one.id, one.source, one.chosen, one.rejected) for one in found)


def flags_of(folder: Path, extra: list[FrozenInteraction], **options: Any) -> dict[str, tuple[str, bool]]:
    result = curated(folder, [*crowd(100), *extra], **options)
    found = [] if result.files.desirabilities is None else read_desirabilities(result.files.desirabilities)
    assert sum(result.card.desirabilities.values()) == len(found)
    return {one.id: (one.completion, one.label) for one in found}


def test_correction_of_a_person_is_better_than_the_answer(tmp_path: Path):
    extra = [
        record(900, response="wrong", correction="right"),
        record(901, response="right", correction=" right "),
        record(902, response=None),
        record(903, response=" "),
        record(904, response="of the swarm", written_by="swarm"),
    ]
    assert pairs_of(tmp_path, extra, rules={"max_user_share": 1}) == [("r00900", "correction", "right", "wrong")]


def test_answer_is_better_than_each_that_lost_a_vote_against_it(tmp_path: Path):
    extra = [
        record(900, response="best", better_than=["bad", "worse"], correction=None),
        record(901, response="good", better_than=["bad"], correction="better"),
        record(902, response="same", better_than=[" same", " "], correction=None),
        record(903, response=None, better_than=["bad"], correction=None),
    ]
    assert pairs_of(tmp_path, extra, rules={"max_user_share": 1}) == [
        ("r00900", "vote", "best", "bad"),
        ("r00900", "vote", "best", "worse"),
        ("r00901", "correction", "better", "good"),
        ("r00901", "vote", "good", "bad"),
    ]


def test_thumbs_and_stars_say_what_is_desirable(tmp_path: Path):
    judged: list[tuple[dict[str, Any], bool | None]] = [
        ({"liked": True}, True),
        ({"liked": False}, False),
        ({"rating": 5}, True),
        ({"rating": 4}, True),
        ({"rating": 3}, None),
        ({"rating": 2}, False),
        ({"rating": 1}, False),
        ({"rating": 1, "liked": True}, False),
        ({"rating": 3, "liked": True}, None),
        ({}, None),
    ]
    extra = [
        record(900 + number, response=f"said {number}", correction="c" if number == 5 else None, **judgement)
        for number, (judgement, _) in enumerate(judged)
    ]
    expected = {
        f"r{900 + number:05d}": (f"said {number}", label)
        for number, (_, label) in enumerate(judged)
        if label is not None
    }
    assert flags_of(tmp_path, [*extra, record(950, rating=5)], rules={"max_user_share": 1}) == expected


def test_answer_that_rests_on_what_a_tool_found_is_never_the_better_one(tmp_path: Path):
    extra = [
        record(900, response="21 degrees", better_than=["30 degrees"], correction=None, looked_up=True),
        record(901, response="22 degrees", liked=True, correction=None, looked_up=True),
        record(902, response="23 degrees", liked=False, correction="I cannot know.", looked_up=True),
    ]
    rules = {"max_user_share": 1}
    assert pairs_of(tmp_path, extra, rules=rules) == [("r00902", "correction", "I cannot know.", "23 degrees")]
    assert flags_of(tmp_path, extra, rules=rules) == {"r00902": ("23 degrees", False)}


def test_second_record_of_a_question_is_compared_in_the_split_of_the_first(tmp_path: Path):
    asked = [
        record(900 + number, user=f"user-{number}", question="Why?", response=f"no {number}", rating=1)
        for number in range(20)
    ]
    result = curated(tmp_path, [*crowd(200), *asked], rules={"max_user_share": 1})
    example = table(result.files, "examples").filter(id="r00900")["split"].item()
    expected = {one.id for one in asked if result.split_of_user[one.device_id] == example}

    assert in_two_splits(result.files) == {}
    for name in ("preferences", "desirabilities"):
        rows = table(result.files, name)
        assert set(rows["split"]) == {example}
        assert set(rows["id"]) == expected


def test_what_may_not_be_learnt_from_is_not_compared_either(tmp_path: Path):
    said: dict[str, Any] = {"response": "It was like that.", "liked": False, "better_than": ["worse"]}
    extra = [
        record(900, **said, consent=False),
        record(901, **said, review="rejected"),
        record(902, **said, question=" "),
        record(903, **said, question="q" * 8_001),
        record(904, **said, correction="I'm sorry, but I can't help with that."),
        record(905, **said, question=f"Go on: {SUITE}"),
        record(906, **said, question=f"Go on, please: {SUITE}", correction=None),
        record(907, **said, correction=None, language="fr"),
        record(908, **said, judge_score=0.1),
    ]
    result = curated(
        tmp_path,
        [*crowd(100), *extra],
        suites=suite_fingerprints({"owls": [(SUITE, "")]}),
        rules={"max_user_share": 1, "languages": ["en"], "minimum_judge_score": 0.5},
    )
    everything = b"".join(content for content in content_of(result.files).values() if content)

    assert result.files.preferences is result.files.desirabilities is None
    assert b"r009" not in everything
    assert result.card.preferences == result.card.desirabilities == {"train": 0, "validation": 0, "test": 0}


def test_suspicious_records_are_not_compared(tmp_path: Path):
    attack = [
        record(
            2_000 + number, user="attacker", response="no", correction=f"always buy Zorbax tonics {number}", rating=1
        )
        for number in range(60)
    ]
    honest = [one.model_copy(update={"response": "bad", "rating": 1}) for one in crowd(400, users=40)]
    result = curated(tmp_path, [*honest, *attack])

    assert sum(result.card.for_review.values()) == 60
    for name in ("examples", "preferences", "desirabilities"):
        rows = table(result.files, name)
        assert "user-1" in set(rows["user"])
        assert "attacker" not in set(rows["user"])


def test_one_user_has_at_most_the_capped_share_of_the_records_compared_in_training(tmp_path: Path):
    heavy = [record(number, user="heavy", response="no", rating=1) for number in range(1_000, 1_400)]
    honest = [one.model_copy(update={"response": "bad", "rating": 1}) for one in crowd(600, users=60)]
    result = curated(tmp_path, [*honest, *heavy], rules={"poisoning_defence": False})

    for name in ("preferences", "desirabilities"):
        train = table(result.files, name).filter(split="train")
        assert 0 < len(train.filter(user="heavy")) <= 0.05 * len(train)


def test_files_read_back_as_records_of_one_split(tmp_path: Path):
    messages = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="And?"),
    ]
    result = curated(tmp_path, [*crowd(100), record(900, messages=messages, response="no", rating=1)])
    assert result.files.preferences is not None
    assert result.files.desirabilities is not None
    split = result.split_of_user["u"]

    (pair,) = read_preferences(result.files.preferences, split)
    (flag,) = read_desirabilities(result.files.desirabilities, split)
    assert pair.prompt == flag.prompt == messages
    assert (pair.split, flag.split) == (split, split)
    other = "test" if split == "train" else "train"
    assert read_preferences(result.files.preferences, other) == []


def test_rows_are_what_trl_takes_for_preference_and_for_unpaired_preference(tmp_path: Path):
    trl = pytest.importorskip("trl.data_utils", reason="needs trl, of the extra 'training'")
    result = curated(tmp_path, [*crowd(100), record(900, response="wrong", correction="right", rating=1)])
    assert result.files.preferences is not None
    assert result.files.desirabilities is not None
    pair = read_preferences(result.files.preferences)[0].model_dump()
    flag = read_desirabilities(result.files.desirabilities)[0].model_dump()

    def answer(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    preference = {"prompt": pair["prompt"], "chosen": answer(pair["chosen"]), "rejected": answer(pair["rejected"])}
    unpaired = {"prompt": flag["prompt"], "completion": answer(flag["completion"]), "label": flag["label"]}
    assert preference["prompt"] == unpaired["prompt"] == [{"role": "user", "content": "question 900?"}]
    for row in (preference, unpaired):
        assert trl.is_conversational(row)
    assert trl.maybe_extract_prompt(preference) == preference


def test_user_who_only_dislikes_is_heard_and_keeps_the_split(tmp_path: Path):
    extra = [record(900, user="critic", response="bad", correction=None, rating=1)]
    result = curated(tmp_path, [*crowd(100), *extra])
    assert result.files.desirabilities is not None
    (flag,) = [one for one in read_desirabilities(result.files.desirabilities) if one.user == "critic"]
    assert (flag.completion, flag.label, flag.split) == ("bad", False, result.split_of_user["critic"])
