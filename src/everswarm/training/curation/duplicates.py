"""Questions that are the same, and records that are: by exact hash, and by MinHash."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from everswarm.settings import CurationRules
from everswarm.training.curation.marks import drop, kept
from everswarm.training.curation.similarity import clusters

_QUESTIONS = ("question", "compared")
_EARLIEST = [pl.col("sent"), pl.col("timestamp"), pl.col("id")]


def with_clusters(frame: pl.DataFrame, rules: CurationRules) -> pl.DataFrame:
    """Return `frame` with `question_cluster`, `target_cluster` and `compared_cluster` (Int64).

    Rows of one cluster have questions (targets) of the same words, or so alike that they pass for the same; questions
    also the same numbers, and the same said before. `compared_cluster` is that of the questions of all usable rows; the
    others link only rows that are still there, so that no flood of others can tie questions together.
    """
    is_left, is_usable = frame["dropped"].is_null(), frame["usable"]
    for name, prefix, rows in (
        ("question", "question", is_left),
        ("target", "target", is_left),
        ("compared", "question", is_usable),
    ):
        found = _clusters(frame, prefix, rows, similarity=rules.near_duplicate)
        frame = frame.with_columns(pl.Series(f"{name}_cluster", found, dtype=pl.Int64))
    frame = frame.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    refined = [pl.col("row").min().over(f"{name}_cluster", "setting").alias(f"{name}_cluster") for name in _QUESTIONS]
    return frame.with_columns(refined).drop("row")


def drop_duplicates(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep one of the records that say the same, or nearly: of who sent least, then the earliest.

    Else who copies what others say, dated back, would take their place.
    `support` (UInt32) tells how many users gave nearly this answer to nearly this question, `sent` what a user sent.
    """
    both = ["question_cluster", "target_cluster"]
    support = pl.col("user").filter(kept).n_unique().over(both)
    frame = frame.with_columns(support.cast(pl.UInt32).alias("support"), kept.sum().over("user").alias("sent"))
    frame = drop(frame, "duplicates", {"same conversation and target": ~_is_first(["exact"])})
    return drop(frame, "duplicates", {"nearly the same conversation and target": ~_is_first(both)})


def drop_further_answers(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep one record a question: a person's correction before the swarm's before a liked answer.

    Then what most users say, then of who sent least, then the earliest, then the lowest id.
    """
    source = pl.when(pl.col("source") == "answer").then(2).when(pl.col("by_swarm")).then(1).otherwise(0)
    order = [source, -pl.col("support").cast(pl.Int64), *_EARLIEST]
    return drop(frame, "question", {"question already kept": ~_is_first(["question_cluster"], order=order)})


def _is_first(keys: list[str], *, order: list[pl.Expr] | None = None) -> pl.Expr:
    """Say whether a row comes first among the rows that are still there and have the same `keys`."""
    wanted = order or _EARLIEST
    place = pl.struct(pl.when(kept).then(0).otherwise(1), *[each.alias(f"order {i}") for i, each in enumerate(wanted)])
    return place.rank("ordinal").over(keys) == 1


def _clusters(frame: pl.DataFrame, prefix: str, rows: pl.Series, *, similarity: float) -> npt.NDArray[np.int64]:
    bands = frame[f"{prefix}_bands"].to_numpy()
    sketches = frame[f"{prefix}_sketch"].to_numpy()
    is_text = (rows & (frame[f"{prefix}_words"] > 0)).to_numpy()
    return clusters(bands, sketches, is_text, similarity=similarity)
