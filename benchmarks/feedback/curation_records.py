"""A made-up snapshot: judged interactions of 1 KB a line, as a server with many users would freeze them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FREQUENT = "the of and to a in is it you that for was on are with as be at this have"  # words
ONSETS = "bcdfghklmnprstvw"
RHYMES = ("a", "e", "i", "o", "u", "ai", "ea", "or", "en", "is")
OTHER_WORDS = 20_000
AT_ONCE = 10_000  # records; shapes the random numbers, so it is fixed
QUESTIONS_KEPT = 200_000  # of which some come again
RETURNING = 0.15  # of the questions were asked before
CORRECTED = 0.4
CONSENTING = 0.97
RECORDS_A_USER = 50  # on average; the tenth user has far more than the last
RATINGS = np.array([1, 2, 3, 4, 5, 5])
WORDS = {"question": (12, 36), "answer": (55, 105), "correction": (55, 95)}  # from, to: about 1 KB a line
BEGUN = datetime(2026, 5, 1, tzinfo=UTC)
DAYS = 170

Counts = npt.NDArray[np.int64]


def write_records(path: Path, records: int, *, seed: int = 1) -> None:
    """Write so many JSON lines of `FrozenInteraction`, by id; the same seed gives the same bytes.

    Args:
        path: the file.
        records: how many.
        seed: of everything.
    """
    random = np.random.default_rng(seed)
    writer = _Writer(random)
    users = records // RECORDS_A_USER + 3
    with path.open("w", encoding="ascii", newline="\n") as file:
        for first in range(0, records, AT_ONCE):
            count = min(AT_ONCE, records - first)
            file.writelines(writer.lines(first, count, users=users))


class _Writer:
    """Remembers the questions that were asked."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._words = np.array([*FREQUENT.split(), *_made_up_words(random)], dtype=object)
        weights = 1 / (np.arange(len(self._words)) + 3)  # Zipf's law, about
        self._cumulated = np.cumsum(weights) / weights.sum()
        self._asked: list[str] = []

    def lines(self, first: int, count: int, *, users: int) -> Iterator[str]:
        """Yield the lines of `count` records, of which the first has the number `first`."""
        random = self._random
        questions = self._questions(count)
        answers, corrections = (self._texts(count, *WORDS[kind]) for kind in ("answer", "correction"))
        corrected, consents = random.random(count) < CORRECTED, random.random(count) < CONSENTING
        who = (users * random.random(count) ** 2).astype(int)
        seconds = random.integers(0, DAYS * 24 * 3600, count)
        ratings = random.choice(RATINGS, count)
        for row in range(count):
            record: dict[str, Any] = {
                "schema_version": 1,
                "id": f"{first + row:032x}",
                "device_id": f"u-{who[row]:020x}",
                "timestamp": (BEGUN + timedelta(seconds=int(seconds[row]))).isoformat(),
                "messages": [{"role": "user", "content": questions[row]}],
                "response": answers[row] + ".",
                "model": "small-model",
                "rating": int(ratings[row]),
                "correction": corrections[row] + "." if corrected[row] else None,
                "consent": bool(consents[row]),
                "written_by": "person",
            }
            yield json.dumps(record) + "\n"

    def _questions(self, count: int) -> list[str]:
        fresh = [text + "?" for text in self._texts(count, *WORDS["question"])]
        before = [*self._asked, *fresh[: 0 if self._asked else count // 10]]
        again = np.flatnonzero(self._random.random(count) < RETURNING)
        self._asked += fresh[: QUESTIONS_KEPT - len(self._asked)]
        for row, asked in zip(again, self._random.integers(0, max(len(before), 1), len(again)), strict=True):
            fresh[row] = before[asked] if before else fresh[row]
        return fresh

    def _texts(self, count: int, least: int, most: int) -> list[str]:
        """Return texts of `least` to `most` words, the first with a capital."""
        ends: Counts = np.cumsum(self._random.integers(least, most + 1, count))
        drawn = self._random.random(int(ends[-1]))
        words = self._words[np.searchsorted(self._cumulated, drawn)].tolist()
        starts = [0, *ends[:-1].tolist()]
        return [" ".join(words[start:end]).capitalize() for start, end in zip(starts, ends.tolist(), strict=True)]


def _made_up_words(random: np.random.Generator) -> list[str]:
    syllables = [onset + rhyme for onset in ONSETS for rhyme in RHYMES]
    lengths = random.integers(1, 4, OTHER_WORDS)
    return ["".join(syllables[one] for one in random.integers(0, len(syllables), length)) for length in lengths]
