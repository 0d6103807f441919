"""How a step says that it drops a row: the frame keeps the row and the reason, so that every card adds up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import polars as pl

from everswarm.schemas.dataset import Dropped

SEPARATOR = ": "  # between the step and its reason in the column `dropped`

# The order in which cards tell what was dropped: that of the steps.
STEPS = (
    "consent",
    "review",
    "length",
    "target",
    "language",
    "quality",
    "contamination",
    "poisoning",
    "duplicates",
    "question",
    "balance",
    "user share",
    "split",
    "training cap",
)

kept = pl.col("dropped").is_null()


def drop(frame: pl.DataFrame, step: str, reasons: Mapping[str, pl.Expr]) -> pl.DataFrame:
    """Return `frame` with the rows marked that are still there and for which a reason holds; the first one counts.

    Args:
        frame: has the column `dropped`, null where a row is still there.
        step: one of `STEPS`.
        reasons: what to tell → an expression of Booleans; null is false.
    """
    mark = pl.col("dropped")
    for reason, holds in reversed(list(reasons.items())):
        text = pl.lit(f"{step}{SEPARATOR}{reason}")
        mark = pl.when(kept & holds.fill_null(False)).then(text).otherwise(mark)
    return frame.with_columns(mark.alias("dropped"))


def drop_with(frame: pl.DataFrame, step: str, reason: pl.Expr) -> pl.DataFrame:
    """Return `frame` with the rows marked that are still there and have a `reason`, a text or null."""
    mark = pl.when(kept & reason.is_not_null()).then(pl.concat_str(pl.lit(f"{step}{SEPARATOR}"), reason))
    return frame.with_columns(mark.otherwise(pl.col("dropped")).alias("dropped"))


def counted(dropped: pl.Series) -> list[Dropped]:
    """Return how many rows each step took, by step, the most frequent reason first."""
    counts = dropped.drop_nulls().value_counts(sort=False)
    found = [_dropped(mark, count) for mark, count in counts.iter_rows()]
    return sorted(found, key=lambda item: (STEPS.index(item.step), -item.count, item.reason))


def told(dropped: Iterable[Dropped]) -> str:
    """Return the account in one sentence."""
    return "; ".join(f"{item.step}: {item.count} ({item.reason})" for item in dropped) or "nothing"


def _dropped(mark: str, count: int) -> Dropped:
    step, _, reason = mark.partition(SEPARATOR)
    return Dropped(step=step, reason=reason, count=count)
