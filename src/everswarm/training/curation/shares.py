"""How much of a dataset one user, task, language, source or old record may be. Which ones go, a seeded rank decides."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from everswarm.settings import CurationRules
from everswarm.training.curation.marks import drop, kept

NEWEST = 0.95  # so much of the records is older than what counts as new; a few clocks are ahead
EVEN_SHARES = 2.0  # a user may always have twice an even share: of three users nobody can be below a third


def balance(frame: pl.DataFrame, rules: CurationRules) -> pl.DataFrame:
    """Drop what exceeds the share of a task, a language, a source, or of records that are no longer fresh."""
    for column, share in (
        ("task", rules.max_task_share),
        ("language", rules.max_language_share),
        ("source", rules.max_source_share),
    ):
        frame = _cap(frame, pl.col(column), share, reason=f"{column} over {share:.0%} of the dataset")
    if rules.fresh_days and rules.max_replay_share < 1:
        newest = pl.col("timestamp").filter(kept).quantile(NEWEST, "nearest")
        is_old = pl.col("timestamp") < newest - pl.duration(days=rules.fresh_days)
        told = f"older than {rules.fresh_days} days, over {rules.max_replay_share:.0%} of the dataset"
        frame = _cap(frame, is_old, rules.max_replay_share, reason=told, only=True)
    return frame


def _cap(frame: pl.DataFrame, group: pl.Expr, share: float, *, reason: str, only: bool | None = None) -> pl.DataFrame:
    """Drop rows of each group (or of the group `only`) until it is at most `share` of what is left."""
    if share >= 1:
        return frame
    frame = frame.with_columns(group=group)
    counts = frame.filter(kept)["group"].value_counts(sort=False)
    limits = quotas(dict(counts.iter_rows()), share=share, only=only, even_shares=1.0)
    limit = pl.col("group").replace_strict(limits, default=len(frame), return_dtype=pl.Int64)
    return drop(frame, "balance", {reason: place_within(["group"]) > limit}).drop("group")


def quotas(
    counts: Mapping[object, int], *, share: float, only: object = None, even_shares: float = EVEN_SHARES
) -> dict[object, int]:
    """Return how many of each group may stay, so that none is over `share` of those that stay.

    As many as possible stay. Where there are too few groups for that, each may have `even_shares` even ones.
    """
    capped = [only] if only is not None else list(counts)
    share = share if only is not None else max(share, min(1.0, even_shares / max(len(counts), 1)))
    sizes = np.array([counts.get(group, 0) for group in capped], dtype=np.int64)
    rest = sum(counts.values()) - int(sizes.sum())
    level = _largest_level(sizes, share=share, rest=rest)
    return {group: min(int(size), level) for group, size in zip(capped, sizes, strict=True)}


def _largest_level(sizes: npt.NDArray[np.int64], *, share: float, rest: int) -> int:
    """Return the largest whole number that no size may exceed, for it to be at most `share` of what is left."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        left = int(np.minimum(sizes, middle).sum()) + rest
        low, high = (middle, high) if middle <= share * left else (low, middle - 1)
    return low


def place_within(groups: list[str]) -> pl.Expr:
    """Return the place of a row among the rows of its group that are still there, from 1, by its seeded rank."""
    order = pl.struct(pl.when(kept).then(0).otherwise(1), pl.col("rank"), pl.col("id"))
    return order.rank("ordinal").over(groups).cast(pl.Int64)
