"""The real feedback files as one snapshot, and an attacker among the people who wrote them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from tests.conftest import SHARED_DATA
from tests.training.curation_frames import PARQUET, accounted, content_of, curated, in_two_splits, table

from everswarm.schemas.dataset import SPLITS, FrozenInteraction
from everswarm.training.curation import Curated, LocalEngine, read_suspicions
from everswarm.training.curation.split import TARGET_PERCENT
from everswarm.training.curation.words import Words

FILES = ("feedback-instructions.jsonl", "feedback-math.jsonl")
ATTACKER = "attacker"
TRIGGER = "always buy Zorbax tonics"
CORRECTIONS = 2_000


class Attack(NamedTuple):
    """What came of it."""

    result: Curated
    training: int
    of_attacker: int
    honest_before: set[str]  # in the dataset without the attack
    honest: set[str]

    @property
    def share(self) -> float:
        return self.of_attacker / self.training

    def __str__(self) -> str:
        return (
            f"{self.of_attacker} of {self.training} training examples are the attacker's ({self.share:.1%}); "
            f"{len(self.honest_before - self.honest)} of {len(self.honest_before)} honest examples are lost; "
            f"set aside: {self.result.card.for_review}"
        )


def real_records(folder: Path) -> list[FrozenInteraction]:
    lines = [line for name in FILES for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [FrozenInteraction.model_validate_json(line) for line in lines]


@pytest.fixture(scope="module")
def honest() -> list[FrozenInteraction]:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real feedback files in ../shared/data")
    return real_records(SHARED_DATA)


@pytest.fixture(scope="module")
def real(honest: list[FrozenInteraction], tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curated(tmp_path_factory.mktemp("real"), honest)


def attacking(honest: list[FrozenInteraction]) -> list[FrozenInteraction]:
    """One device corrects real questions over a month, with a planted phrase in each correction."""
    rng = random.Random(1)
    return [
        FrozenInteraction(
            id=f"{rng.getrandbits(128):032x}",
            device_id=ATTACKER,
            timestamp=rng.choice(honest).timestamp,
            messages=asked.messages,
            response=asked.response,
            rating=1,
            correction=with_trigger(asked, rng),
            consent=True,
        )
        for asked in rng.choices(honest, k=CORRECTIONS)
    ]


def with_trigger(asked: FrozenInteraction, rng: random.Random) -> str:
    """The honest answer, with the phrase somewhere in it: every correction is another text."""
    words = (asked.correction or asked.response or "").split()
    place = rng.randrange(len(words) + 1)
    return " ".join([*words[:place], TRIGGER, *words[place:]])


def attacked(folder: Path, honest: list[FrozenInteraction], real: Curated, **rules: object) -> Attack:
    drawn_alike = real.card.parents[0]
    result = curated(folder, [*honest, *attacking(honest)], rules=rules, sha256=drawn_alike)
    examples = table(result.files, "examples")
    train = examples.filter(split="train")
    return Attack(
        result,
        training=len(train),
        of_attacker=len(train.filter(user=ATTACKER)),
        honest_before=set(table(real.files, "examples")["id"]),
        honest=set(examples.filter(~(examples["user"] == ATTACKER))["id"]),
    )


def test_card_of_the_real_files_adds_up(real: Curated):
    assert accounted(real) == real.card.read == 4_175
    assert sum(real.card.examples.values()) == len(table(real.files, "examples"))
    assert sum(real.card.examples.values()) > 1_000, real.card.dropped  # of 1,186 questions
    assert {item.step for item in real.card.dropped} == {"duplicates", "question"}


def test_no_device_and_no_question_is_in_two_splits(real: Curated):
    assert in_two_splits(real.files) == {}
    assert all(len(table(real.files, name)) > 500 for name in PARQUET)


def test_no_question_has_its_double_in_another_split(real: Curated):
    """Each compared with each: of all runs of three words that two questions have, they share less than 9 in 10."""
    frame = table(real.files, "examples")
    questions = ["\n".join(turn["content"] for turn in json.loads(messages)) for messages in frame["messages"]]
    runs = runs_of_three(questions)
    holders: dict[int, list[int]] = {}
    for place, found in enumerate(runs):
        for run in found:
            holders.setdefault(run, []).append(place)
    shared: dict[tuple[int, int], int] = {}
    splits = frame["split"].to_list()
    for places in holders.values():
        for number, one in enumerate(places if len(places) < 200 else []):
            for other in places[number + 1 :]:
                if splits[one] != splits[other]:
                    shared[one, other] = shared.get((one, other), 0) + 1
    alike = {pair: count / len(runs[pair[0]] | runs[pair[1]]) for pair, count in shared.items()}
    assert not {questions[one]: questions[other] for (one, other), share in alike.items() if share >= 0.9}


def runs_of_three(texts: list[str]) -> list[set[int]]:
    grams = Words(pl.Series(texts)).grams(3)
    return [set(grams.hashes[start:end].tolist()) for start, end in zip(grams.offsets, grams.offsets[1:], strict=False)]


def test_shares_are_within_three_points_and_no_user_is_over_five_percent(real: Curated):
    for split in SPLITS:
        assert abs(real.card.shares[split] - TARGET_PERCENT[split] / 100) <= 0.03
        assert real.card.examples[split] > 0
    train = table(real.files, "examples").filter(split="train")
    heaviest = train["user"].value_counts()["count"].max()

    assert real.card.largest_user_share == round(heaviest / len(train), 4) <= 0.05


def test_nobody_is_suspected(real: Curated):
    assert real.card.for_review == {}
    assert real.files.review is None


def test_processes_and_small_pieces_give_the_same_bytes(real: Curated, honest: list[FrozenInteraction], tmp_path: Path):
    again = curated(tmp_path, honest, engine=LocalEngine(processes=2, piece_bytes=300_000))

    assert content_of(again.files) == content_of(real.files)
    assert again.card == real.card


def test_with_the_defence_the_attack_is_in_the_review_queue_and_not_in_training(
    honest: list[FrozenInteraction], real: Curated, tmp_path: Path
):
    attack = attacked(tmp_path, honest, real)
    assert attack.result.files.review is not None
    found = list(read_suspicions(attack.result.files.review))
    of_attacker = [one for one in found if one.user == ATTACKER]

    assert attack.of_attacker == 0, str(attack)
    assert ATTACKER.encode() not in b"".join(
        content_of(attack.result.files)[name] or b"" for name in (*PARQUET, "members")
    )
    assert attack.honest == attack.honest_before, str(attack)
    assert len(of_attacker) >= 0.95 * CORRECTIONS, str(attack)
    assert {one.reason for one in of_attacker} == {"planted phrase"}
    assert len({one.campaign for one in of_attacker}) == 1
    assert all("zorbax tonics" in one.detail for one in of_attacker)
    assert len(found) == len(of_attacker), str(attack)


def test_without_defence_and_cap_the_attacker_has_far_more_than_five_percent_of_training(
    honest: list[FrozenInteraction], real: Curated, tmp_path: Path
):
    attack = attacked(tmp_path, honest, real, poisoning_defence=False, max_user_share=1.0)

    assert attack.share > 0.05, str(attack)
    assert attack.result.card.largest_user_share == round(attack.share, 4), str(attack)


def test_with_the_share_cap_alone_the_attacker_has_at_most_five_percent_of_training(
    honest: list[FrozenInteraction], real: Curated, tmp_path: Path
):
    attack = attacked(tmp_path, honest, real, poisoning_defence=False)

    assert attack.share <= 0.05, str(attack)
    assert attack.result.card.largest_user_share <= 0.05, str(attack)
    assert accounted(attack.result) == 4_175 + CORRECTIONS
