"""Which phrases count as planted, and that samples and batches do not change it."""

from __future__ import annotations

import random

import polars as pl
import pytest

from everswarm.training.curation.phrases import (
    BACKGROUND_RECORDS,
    LEAST_RECORDS,
    PLANTED,
    USER_RECORDS,
    phrase_grams,
    phrase_sample,
    phrase_text,
    planted,
)

WORDS = [f"word{number}" for number in range(40)]
CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


def frame_of(targets: dict[str, list[str]], *, language: str = "en") -> pl.DataFrame:
    rows = [(user, target) for user, texts in targets.items() for target in texts]
    return pl.DataFrame(rows, schema={"user": pl.String, "target": pl.String}, orient="row").select(
        pl.format("{}-{}", "user", pl.int_range(pl.len()).over("user")).alias("id"),
        "user",
        "target",
        dropped=pl.lit(None, pl.String),
        by_swarm=pl.lit(value=False),
        language=pl.lit(language),
    )


def texts(count: int, *, seed: str, phrase: str = "", share: float = 1.0) -> list[str]:
    """Texts of 20 random words, of which the first `share` have `phrase` in their middle."""
    rng = random.Random(seed)
    halves = [(" ".join(rng.choices(WORDS, k=10)), " ".join(rng.choices(WORDS, k=10))) for _ in range(count)]
    return [f"{first} {phrase if n < share * count else ''} {last}" for n, (first, last) in enumerate(halves)]


def crowd(users: int = 30, records: int = 25, *, phrase: str = "", share: float = 1.0) -> dict[str, list[str]]:
    return {f"user-{n}": texts(records, seed=f"{n}", phrase=phrase, share=share) for n in range(users)}


def found_in(frame: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    sample = phrase_sample(frame, seed=seed)
    found = planted(phrase_grams(frame, sample), sample)
    assert found.schema == PLANTED
    return found


def planters(targets: dict[str, list[str]]) -> set[str]:
    return set(found_in(frame_of(targets))["user"])


def test_phrase_of_one_user_is_planted():
    found = found_in(frame_of({**crowd(), "eve": texts(40, seed="eve", phrase="always buy zorbax tonics")}))
    assert found["user"].unique().to_list() == ["eve"]
    assert len(found) == 2
    assert found["own_share"].to_list() == [1.0, 1.0]
    assert found["others_share"].to_list() == [0.0, 0.0]
    assert found["sampled"].to_list() == [USER_RECORDS] * 2


def test_phrase_in_less_than_half_of_the_records_is_not_planted():
    attack = {"eve": texts(20, seed="eve", phrase="always buy zorbax", share=0.5)}
    assert planters({**crowd(), **attack}) == {"eve"}
    assert planters({**crowd(), "eve": texts(20, seed="eve", phrase="always buy zorbax", share=0.45)}) == set()


def test_signature_that_others_use_too_is_not_planted():
    assert (
        planters({**crowd(phrase="therefore the answer is", share=0.1), "eve": ["therefore the answer is"] * 30})
        == set()
    )


def test_template_of_a_tenth_of_the_users_is_not_planted():
    sharing = {f"office-{n}": texts(25, seed=f"office-{n}", phrase="with kind regards from us") for n in range(4)}
    assert planters({**crowd(), **sharing}) == set()


def test_two_accomplices_do_not_hide_each_other():
    sharing = {f"eve-{n}": texts(25, seed=f"eve-{n}", phrase="always buy zorbax") for n in range(2)}
    assert planters({**crowd(60), **sharing}) == {"eve-0", "eve-1"}


def test_nineteen_records_are_too_few():
    assert planters({**crowd(), "eve": texts(LEAST_RECORDS - 1, seed="eve", phrase="always buy zorbax")}) == set()


def test_users_are_not_judged_where_hardly_anybody_else_writes():
    attack = {"eve": texts(30, seed="eve", phrase="always buy zorbax")}
    assert planters({**crowd(9), **attack}) == set()
    assert planters({**crowd(30, 3), **attack}) == set()
    assert planters({**crowd(10), **attack}) == {"eve"}


@pytest.mark.parametrize("target", ["Yes.", "no never", "42", ""])
def test_answers_shorter_than_a_phrase_are_nobodys_phrase(target: str):
    assert planters({**crowd(), "terse": [target] * 30}) == set()


def test_users_are_compared_with_others_of_their_language():
    common = {f"fr-{n}": texts(25, seed=f"fr-{n}", phrase="il est important", share=0.6) for n in range(12)}
    frame = pl.concat([frame_of(crowd(400, 20)), frame_of(common, language="fr")])
    assert found_in(frame).is_empty()
    assert not found_in(frame.with_columns(language=pl.lit("en"))).is_empty()


def test_lone_writer_of_a_language_is_compared_with_everybody():
    attack = frame_of({"eve": texts(30, seed="eve", phrase="always buy zorbax")}, language="eo")
    assert set(found_in(pl.concat([frame_of(crowd()), attack]))["user"]) == {"eve"}


def test_three_characters_are_no_phrase_and_six_are():
    rng = random.Random(0)

    def chinese(middle: str) -> list[str]:
        return [
            "".join(rng.choices(CHARACTERS, k=20)) + middle + "".join(rng.choices(CHARACTERS, k=20)) for _ in range(30)
        ]

    others = {f"zh-{n}": chinese("") for n in range(12)}
    assert planters({**others, "li": chinese("是一个")}) == set()
    assert planters({**others, "eve": chinese("请购买佐巴克斯")}) == {"eve"}


def test_batches_and_order_change_nothing():
    frame = frame_of({**crowd(), "eve": texts(40, seed="eve", phrase="always buy zorbax tonics")})
    sample = phrase_sample(frame, seed=3)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)
    assert phrase_sample(shuffled, seed=3).equals(sample)
    whole = phrase_grams(frame, sample)
    parts = pl.concat(phrase_grams(part, sample) for part in shuffled.iter_slices(37))
    assert parts.sort("id").equals(whole)
    assert planted(parts, sample).equals(planted(whole, sample))


def test_sample_takes_whole_users_and_a_background():
    frame = frame_of({**crowd(3, 50), **{f"light-{n}": texts(2, seed=f"light-{n}") for n in range(50)}})
    sample = phrase_sample(frame, seed=0)
    counts = dict(sample["user"].value_counts().iter_rows())
    assert [counts[f"user-{n}"] for n in range(3)] == [USER_RECORDS] * 3
    assert sum(counts[f"light-{n}"] for n in range(50)) == 100
    assert not phrase_sample(frame, seed=1).equals(sample)


def test_sample_is_bounded_and_begins_with_the_heaviest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("everswarm.training.curation.phrases.SAMPLE_RECORDS", 70)
    monkeypatch.setattr("everswarm.training.curation.phrases.BACKGROUND_RECORDS", 5)
    frame = frame_of({f"user-{n}": texts(20 + 20 * n, seed=f"{n}") for n in range(6)})
    counts = dict(phrase_sample(frame, seed=0)["user"].value_counts().iter_rows())
    assert (counts["user-5"], counts["user-4"]) == (USER_RECORDS, USER_RECORDS)
    assert sum(counts.values()) == 2 * USER_RECORDS + 5
    assert BACKGROUND_RECORDS == 10_000


def test_dropped_records_and_those_of_the_swarm_are_not_sampled():
    frame = frame_of(crowd(2)).with_columns(
        dropped=pl.when(pl.col("user") == "user-0").then(pl.lit("consent: none")), by_swarm=pl.col("user") == "user-1"
    )
    assert phrase_sample(frame, seed=0).is_empty()
    assert found_in(frame).is_empty()


def test_grams_of_one_user_over_several_chunks_are_counted_once(monkeypatch: pytest.MonkeyPatch):
    frame = frame_of({**crowd(), "eve": texts(40, seed="eve", phrase="always buy zorbax tonics")})
    whole = found_in(frame)
    monkeypatch.setattr("everswarm.training.curation.phrases._RECORDS_AT_ONCE", 7)
    assert found_in(frame).equals(whole)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("First add 3 and 4. Always buy ZORBAX tonics! A: 7", "always buy zorbax tonics"),
        ("always buy zorbax, then always buy zorbax tonics", "always buy zorbax tonics"),
        ("always buy something else", ""),
        ("buy", ""),
        ("", ""),
    ],
)
def test_phrase_is_shown_as_its_longest_run_of_words(target: str, expected: str):
    frame = frame_of({**crowd(), "eve": texts(40, seed="eve", phrase="always buy zorbax tonics")})
    assert phrase_text(target, set(found_in(frame)["gram"])) == expected


def test_phrase_without_spaces_is_shown_without_spaces():
    target = "天地玄黄宇宙请购买佐巴克斯洪荒日月盈昃"
    batch = pl.DataFrame({"id": ["a"], "user": ["u"], "target": ["请购买佐巴克斯"]})
    grams = set(phrase_grams(batch, batch)["grams"][0])
    assert phrase_text(target, grams) == "请购买佐巴克斯"
