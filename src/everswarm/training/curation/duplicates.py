"""Questions that are the same, and records that are: by exact hash, and by MinHash."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from everswarm.settings import CurationRules
from everswarm.training.curation.marks import drop, kept
from everswarm.training.curation.similarity import clusters


def with_clusters(frame: pl.DataFrame, rules: CurationRules) -> pl.DataFrame:
    """Return `frame` with `question_cluster` and `target_cluster` (Int64).

    Rows of one cluster have questions (targets) of the same words, or so alike that they pass for the same. A row that
    is not usable is in a cluster of its own.
    """
    for prefix in ("question", "target"):
        found = _clusters(frame, prefix, similarity=rules.near_duplicate)
        frame = frame.with_columns(pl.Series(f"{prefix}_cluster", found, dtype=pl.Int64))
    return frame


def drop_duplicates(frame: pl.DataFrame) -> pl.DataFrame:
    """Drop all but the earliest of the records that say the same, or nearly.

    `support` (UInt32) tells how many users gave nearly this answer to nearly this question.
    """
    both = ["question_cluster", "target_cluster"]
    support = pl.col("user").filter(kept).n_unique().over(both)
    frame = frame.with_columns(support.cast(pl.UInt32).alias("support"))
    frame = drop(frame, "duplicates", {"same conversation and target": ~_is_first(["exact"])})
    return drop(frame, "duplicates", {"nearly the same conversation and target": ~_is_first(both)})


def drop_further_answers(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep one record a question: a person's correction before the swarm's before a liked answer.

    Then what most users say, then the earliest, then the lowest id.
    """
    source = pl.when(pl.col("source") == "answer").then(2).when(pl.col("by_swarm")).then(1).otherwise(0)
    order = [source, -pl.col("support").cast(pl.Int64), pl.col("timestamp"), pl.col("id")]
    return drop(frame, "question", {"question already kept": ~_is_first(["question_cluster"], order=order)})


def _is_first(keys: list[str], *, order: list[pl.Expr] | None = None) -> pl.Expr:
    """Say whether a row comes first among the rows that are still there and have the same `keys`."""
    wanted = order or [pl.col("timestamp"), pl.col("id")]
    place = pl.struct(pl.when(kept).then(0).otherwise(1), *[each.alias(f"order {i}") for i, each in enumerate(wanted)])
    return place.rank("ordinal").over(keys) == 1


def _clusters(frame: pl.DataFrame, prefix: str, *, similarity: float) -> npt.NDArray[np.int64]:
    bands = frame[f"{prefix}_bands"].to_numpy()
    sketches = frame[f"{prefix}_sketch"].to_numpy()
    is_text = (frame["usable"] & (frame[f"{prefix}_words"] > 0)).to_numpy()
    return clusters(bands, sketches, is_text, similarity=similarity)
