"""Nearly the same answer given to many different questions, by one user or by several."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from everswarm.training.curation.similarity import clusters

COLUMNS: Final = (
    "id",
    "user",
    *(f"{text}_{of}" for text in ("question", "target") for of in ("bands", "sketch", "words")),
)
SIMILARITY: Final = 0.6  # of 3-grams: one answer, or question, with a word changed in 15
QUESTIONS: Final = 10  # that get one answer make a campaign
LEAST_WORDS: Final = 4  # of an answer; 'Yes.' and 'A: 10' fit many questions
LONG_WORDS: Final = (
    12  # shorter ones fit many too ('The sentiment is positive.'): there each user alone needs QUESTIONS
)
_BAND_RECORDS = 3  # share a band, to be compared: fewer make no campaign


def near_copies(frame: pl.DataFrame, suspects: pl.Series) -> pl.DataFrame:
    """Return the records of campaigns: (id, key, score, detail), with the lowest id among the copies as the key.

    Who copies an honest answer everywhere must not take it along: those who gave an answer to one question only are
    judged apart from those who gave it to several. The score is questions / (questions + 10).

    Args:
        frame: one row a record: id, user, and bands, sketch and words of question and target.
        suspects: which rows count, (rows,) Boolean.
    """
    rows = (suspects & (frame["target_words"] >= LEAST_WORDS)).arg_true()
    rows = rows.filter(_in_shared_bands(frame["target_bands"].gather(rows).to_numpy()))
    alike = frame.select(COLUMNS)[rows].sort("id")
    copies = _in_clusters(alike, "target").filter(pl.len().over("target") >= QUESTIONS)
    copies = _in_clusters(copies, "question").with_columns(
        asked=pl.col("question").n_unique().over("target", "user"),
        words=pl.col("target_words").median().over("target"),
    )
    copies = copies.filter((pl.col("words") >= LONG_WORDS) | (pl.col("asked") >= QUESTIONS))
    several = pl.col("asked") > 1
    campaigns = copies.group_by("target", several=several).agg(
        records=pl.len(), questions=pl.col("question").n_unique(), users=pl.col("user").n_unique()
    )
    told = campaigns.filter(pl.col("questions") >= QUESTIONS).with_columns(
        score=pl.col("questions") / (pl.col("questions") + QUESTIONS),
        detail=pl.format(
            "nearly the same answer in {} records, to {} different questions, by {}",
            "records",
            "questions",
            pl.when(pl.col("users") == 1).then(pl.lit("one user")).otherwise(pl.format("{} users", "users")),
        ),
    )
    found = copies.with_columns(several=several).join(told, on=["target", "several"])
    return found.select("id", "score", "detail", key="target")


def _in_shared_bands(bands: npt.NDArray[np.uint64]) -> pl.Series:
    """Return which texts have a band that at least `_BAND_RECORDS` have, (texts,): few do, so the rest is cheap."""
    shared = np.zeros(len(bands), dtype=np.bool_)
    for band in bands.T:
        order = np.argsort(band)
        values = band[order]
        starts = (
            np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, int)
        )
        lengths = np.diff(np.append(starts, len(values)))
        shared[order[np.repeat(lengths >= _BAND_RECORDS, lengths)]] = True
    return pl.Series(shared)


def _in_clusters(frame: pl.DataFrame, text: str) -> pl.DataFrame:
    """Add the cluster of the question or target, called by the id of its first record."""
    if frame.is_empty():
        return frame.with_columns(pl.lit(None, pl.String).alias(text))
    labels = clusters(
        frame[f"{text}_bands"].to_numpy(),
        frame[f"{text}_sketch"].to_numpy(),
        (frame[f"{text}_words"] > 0).to_numpy(),
        similarity=SIMILARITY,
    )
    return frame.with_columns(frame["id"].gather(labels).alias(text))
