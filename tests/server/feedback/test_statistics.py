from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.database import Database
from everswarm.server.feedback import store_batch
from everswarm.server.feedback.statistics import UNSAID, WEEKS, Shares, read_picture


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def either(request: pytest.FixtureRequest) -> Database:
    """Both databases: weeks and shares are counted by SQL."""
    name = "database" if request.param == "sqlite" else "postgres_database"
    found: Database = request.getfixturevalue(name)
    return found


def judged(number: int, **values: Any) -> JudgedInteraction:
    fields = {
        "id": f"i-{number}",
        "device_id": "phone",
        "timestamp": "2026-01-07T03:04:05Z",  # a Wednesday
        "messages": [{"role": "user", "content": "?"}],
        "response": "!",
        "consent": True,
    }
    return JudgedInteraction.model_validate(fields | values)


def test_picture_of_nothing_is_empty(either: Database):
    picture = read_picture(either)
    assert (picture.weeks, picture.shares, picture.sources, picture.languages) == ({}, None, {}, {})
    assert picture.ratings == dict.fromkeys(range(1, 6), 0)


def test_picture_counts_stars_weeks_shares_languages_and_sources(either: Database):
    records = [
        judged(1, rating=5, language="de"),
        judged(2, rating=1, correction="so", language="de"),
        judged(3, liked=False, consent=False, language="en"),
        judged(4, rating=3, timestamp="2025-12-31T23:59:59Z"),
        judged(5, rating=3, timestamp="2020-01-01T00:00:00Z"),
        judged(6),
    ]
    store_batch(either, records, source="import")
    picture = read_picture(either)
    assert picture.ratings == {1: 1, 2: 0, 3: 2, 4: 0, 5: 1}
    assert len(picture.weeks) == WEEKS
    assert list(picture.weeks.items())[-2:] == [(date(2025, 12, 29), 1), (date(2026, 1, 5), 3)]
    assert sum(picture.weeks.values()) == 4
    assert picture.shares == Shares(corrected=0.2, liked=0.2, disliked=0.4, consented=0.8)
    assert picture.languages == {UNSAID: 3, "de": 2, "en": 1}
    assert picture.sources == {"import": 6}


def test_languages_beyond_the_most_frequent_are_one(either: Database):
    codes = ["aa", "ab", "ac", "ad", "ae", "af", "ag", "ah", "ai", "ak"]
    store_batch(either, [judged(number, language=code) for number, code in enumerate(codes)], source="import")
    languages = read_picture(either).languages
    assert (len(languages), languages["other"], sum(languages.values())) == (9, 2, 10)
