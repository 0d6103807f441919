"""Which questions and records pass for the same, and which of them stays."""

from __future__ import annotations

import unicodedata
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.training.curation_frames import START, crowd, curated, dropped, ids_of, in_two_splits, record

from everswarm.schemas.interaction import Message
from everswarm.training.curation.similarity import BANDS, MINIMA, clusters

STORY = "A farmer sells twelve baskets of red apples and nine baskets of pears on the market every Saturday morning "
FIRST = "Multiply baskets by price, add both products, and you have what he earns on one Saturday in the season. "


def kept_from(result, number: int) -> list[str]:
    return sorted(name for name in ids_of(result.files, "examples") if int(name[1:]) >= number)


def test_one_record_a_question_prefers_a_correction_then_the_earliest(tmp_path: Path):
    extra = [
        record(900, question="Why  IS it so?", response="first", rating=5, correction=None),
        record(902, question="why is\nit so?", correction="later correction"),
        record(901, question="Why is it so?", correction="earlier correction"),
        record(903, question="Why is it so?", correction="earlier correction"),
    ]
    result = curated(tmp_path, [*crowd(), *extra])

    assert kept_from(result, 900) == ["r00901"]
    assert dropped(result) == {
        "duplicates: same conversation and target": 1,
        "question: question already kept": 2,
    }


def test_correction_of_a_person_is_kept_before_the_one_of_the_swarm(tmp_path: Path):
    extra = [
        record(900, question="Why is it so?", correction="says the swarm", written_by="swarm"),
        record(901, question="Why is it so?", correction="says a person"),
        record(902, question="And why not?", correction="says the swarm again", written_by="swarm"),
        record(903, question="And why not?", correction=None, response="says a liked answer", rating=5),
    ]
    assert kept_from(curated(tmp_path, [*crowd(), *extra], rules={"max_user_share": 1}), 900) == ["r00901", "r00902"]


def test_what_most_people_say_is_kept_before_what_was_said_first(tmp_path: Path):
    answers = ["alone with this", "said by several people", "said by several people", "said by several people"]
    extra = [
        record(900 + number, user=f"user-{number}", question="Why is it so?", correction=answer)
        for number, answer in enumerate(answers)
    ]
    assert kept_from(curated(tmp_path, [*crowd(), *extra]), 900) == ["r00901"]


def test_one_person_who_repeats_an_answer_does_not_outvote_two_who_agree(tmp_path: Path):
    voters = ["loud"] * 4 + ["user-1", "user-2"]
    extra = [
        record(
            900 + number,
            user=user,
            question="Why is it so?",
            correction="shouted" + " again" * number if user == "loud" else "agreed upon",
        )
        for number, user in enumerate(voters)
    ]
    assert kept_from(curated(tmp_path, [*crowd(), *extra]), 900) == ["r00904"]


def test_nearly_the_same_question_and_answer_are_one_record(tmp_path: Path):
    extra = [
        record(900, question=STORY + "of May.", correction=FIRST + "Done."),
        record(901, question=STORY + "of June.", correction=FIRST + "Ready."),
        record(902, question=STORY + "of July.", correction="Nobody could say that without a price for each."),
    ]
    result = curated(tmp_path, [*crowd(), *extra])

    assert kept_from(result, 900) == ["r00900"]
    assert dropped(result) == {
        "duplicates: nearly the same conversation and target": 1,
        "question: question already kept": 1,
    }


def test_from_which_similarity_on_questions_are_one_is_a_rule(tmp_path: Path):
    extra = [record(900, question=STORY + "of May."), record(901, question=STORY + "of June, as he did before.")]

    assert dropped(curated(tmp_path, [*crowd(), *extra], rules={"near_duplicate": 1})) == {}
    assert dropped(curated(tmp_path, [*crowd(), *extra], rules={"near_duplicate": 0.5})) == {
        "question: question already kept": 1
    }


def test_same_last_question_after_another_history_is_another_question(tmp_path: Path):
    history = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello")]
    follow_up = record(900, messages=[*history, Message(role="user", content="question 1?")])

    assert dropped(curated(tmp_path, [*crowd(), follow_up])) == {}


@pytest.mark.parametrize("question", ["🙂", "?!", "→ … ←"])
def test_question_without_words_is_kept_once_and_in_one_split(tmp_path: Path, question: str):
    extra = [
        record(900 + number, user=f"user-{number}", question=question, response="bad", rating=1) for number in range(20)
    ]
    others = [record(950, question="🙁"), record(951, question="?")]
    result = curated(tmp_path, [*crowd(200), *extra, *others], rules={"max_user_share": 1})

    assert dropped(result) == {"question: question already kept": 19}
    assert in_two_splits(result.files) == {}
    assert kept_from(result, 950) == ["r00950", "r00951"]


def test_earliest_by_time_and_not_by_id_stays(tmp_path: Path):
    extra = [
        record(900, question="Why is it so?", timestamp=START + timedelta(days=9)),
        record(901, question="Why is it so?", timestamp=START),
    ]
    assert kept_from(curated(tmp_path, [*crowd(), *extra]), 900) == ["r00901"]


def test_texts_of_the_same_words_are_one_cluster_though_others_come_first_in_every_band():
    same = np.arange(1, MINIMA + 1, dtype=np.uint8)
    rows = MINIMA // BANDS
    bands = np.tile(np.arange(BANDS, dtype=np.uint64), (4, 1))
    sketches = np.tile(same, (4, 1))
    for text, others in ((0, slice(0, BANDS // 2)), (1, slice(BANDS // 2, BANDS))):
        bands[text, others] += np.uint64(1_000 + text)
        sketches[text].reshape(BANDS, rows)[others] = 0

    found = clusters(bands, sketches, np.ones(4, dtype=np.bool_), similarity=0.8)

    assert found.tolist() == [0, 1, 2, 2]


def test_texts_without_words_are_each_alone():
    bands, sketches = np.zeros((3, BANDS), np.uint64), np.zeros((3, MINIMA), np.uint8)

    assert clusters(bands, sketches, np.zeros(3, dtype=np.bool_), similarity=0.8).tolist() == [0, 1, 2]
    assert clusters(bands[:0], sketches[:0], np.zeros(0, dtype=np.bool_), similarity=0.8).tolist() == []


def test_suspicious_copy_that_came_first_does_not_take_the_place_of_the_honest_record(tmp_path: Path):
    """An attacker copies honest answers, with a phrase, and claims to have sent them before."""
    honest = [
        record(number, user=f"user-{number % 30}", question=f"{number} {STORY}?", correction=f"{number} {FIRST * 3}")
        for number in range(20)
    ]
    others = [record(number, user=f"user-{number % 30}") for number in range(100, 400)]
    attack = [
        one.model_copy(
            update={
                "id": f"attack-{one.id}",
                "device_id": "attacker",
                "timestamp": START - timedelta(days=1),
                "correction": f"{one.correction} always buy Zorbax tonics",
            }
        )
        for one in [*honest, *others]
    ]
    before = curated(tmp_path / "a", [*honest, *others])
    after = curated(tmp_path / "b", [*honest, *others, *attack])

    assert after.card.for_review == {"planted phrase": len(attack)}
    assert sorted(ids_of(after.files, "examples")) == sorted(ids_of(before.files, "examples"))


def test_questions_that_differ_in_a_number_alone_stay_apart(tmp_path: Path):
    story = (
        "A farmer has {} sheep and buys five more at the market in town, then sells two of them to a neighbour who " * 2
    )
    extra = [
        record(900 + n, user=f"w{n}", question=story.format(n + 10, n + 10), correction=f"{n + 13} sheep are left.")
        for n in range(8)
    ]
    result = curated(tmp_path, [*crowd(100), *extra])
    assert "question: question already kept" not in dropped(result)


def test_one_system_prompt_does_not_make_all_questions_one(tmp_path: Path):
    system = Message(
        role="system", content="You are a helpful assistant of a small firm that sells garden tools. " * 12
    )
    extra = [
        record(900 + n, user=f"w{n}").model_copy(
            update={"messages": [system, Message(role="user", content=f"Unlike question {'abcdefgh'[n]}?")]}
        )
        for n in range(8)
    ]
    assert "question: question already kept" not in dropped(curated(tmp_path, [*crowd(100), *extra]))


def test_copy_that_is_dated_back_does_not_take_the_place_of_who_sent_less(tmp_path: Path):
    honest = record(900, user="light", question="What is a quokka?", correction="A small marsupial of Australia.")
    copies = [
        record(
            901 + n,
            user="heavy",
            question=q,
            correction="A small marsupial of Australia.",
            timestamp=START - timedelta(days=900),
        )
        for n, q in enumerate(["What is a quokka?", "Who sings?", "Why so?"])
    ]
    result = curated(tmp_path, [*crowd(100), honest, *copies], rules={"poisoning_defence": False})
    assert dropped(result)["duplicates: same conversation and target"] == 1
    assert "r00901" not in ids_of(result.files, "examples")


def test_same_words_in_another_encoding_are_the_same_question(tmp_path: Path):
    pair = [
        record(900 + n, user=f"w{n}", question=unicodedata.normalize(form, "Où est la forêt près de l'école\u200b ?"))
        for n, form in enumerate(("NFC", "NFD"))
    ]
    assert dropped(curated(tmp_path, [*crowd(100), *pair]))["question: question already kept"] == 1
