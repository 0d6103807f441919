"""Users who send far more within an hour than others ever do."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

HOUR_SECONDS: Final = 3_600
LEAST_RECORDS: Final = 30  # within an hour are nobody's burst
TIMES: Final = 20  # the busiest hour that 95 of 100 users stay within
PERCENTILE: Final = 95
STAMP_USERS: Final = 10  # who have one and the same timestamp on all they sent: an import, whose times say nothing
_SECOND_BITS = 39  # 17,000 years

Integers = npt.NDArray[np.int64]


def bursts(sent: pl.DataFrame) -> pl.DataFrame:
    """Return the records of bursts: (id, key, score, detail), with the user as the key.

    The score is count / (count + limit) of the user's busiest hour: 0.5 at the limit.

    Args:
        sent: (id, user, timestamp, suspect): records that are not `suspect` only tell what is usual.
    """
    judged = _without_stamped(sent)
    limit = _limit(judged)
    suspects = judged.filter("suspect")
    order, keys = _by_user_and_time(suspects)
    starts = np.arange(len(keys))
    counts = np.searchsorted(keys, keys + HOUR_SECONDS) - starts  # records in the hour that each one begins
    over = np.flatnonzero(counts > limit)
    changes = np.zeros(len(keys) + 1, dtype=np.int64)
    np.add.at(changes, over, 1)
    np.add.at(changes, over + counts[over], -1)
    inside = np.cumsum(changes[:-1]) > 0
    found = suspects.select("id", "user", "timestamp")[order].with_columns(count=counts).filter(pl.Series(inside))
    busiest = found.sort(["count", "timestamp"], descending=[True, False]).group_by("user", maintain_order=True).first()
    detail = pl.format(
        "{} records within an hour from {} UTC; more than {} are a burst here, {} times what 95 of 100 users reach",
        "count",
        pl.col("timestamp").dt.strftime("%Y-%m-%d %H:%M"),
        pl.lit(limit),
        pl.lit(TIMES),
    )
    told = busiest.select("user", score=pl.col("count") / (pl.col("count") + limit), detail=detail)
    return found.join(told, on="user").select("id", "score", "detail", key="user")


def _without_stamped(sent: pl.DataFrame) -> pl.DataFrame:
    """Leave out users whose records all have one timestamp, where at least `STAMP_USERS` have the same."""
    users = sent.group_by("user").agg(pl.len(), first=pl.col("timestamp").min(), last=pl.col("timestamp").max())
    stamped = users.filter(pl.col("len") > 1, pl.col("first") == pl.col("last"))
    stamped = stamped.filter(pl.len().over("first") >= STAMP_USERS)
    return sent.join(stamped.select("user"), on="user", how="anti") if len(stamped) else sent


def _limit(sent: pl.DataFrame) -> int:
    """Return how many records within an hour are still no burst, from the busiest hours of all users."""
    if sent.is_empty():
        return LEAST_RECORDS
    _, keys = _by_user_and_time(sent)
    counts = np.searchsorted(keys, keys + HOUR_SECONDS) - np.arange(len(keys))
    users = keys >> _SECOND_BITS
    busiest = np.maximum.reduceat(counts, np.flatnonzero(np.diff(users, prepend=-1)))
    usual = np.percentile(busiest, PERCENTILE, method="lower")  # of few users, never that of the busiest
    return max(LEAST_RECORDS, TIMES * int(usual))


def _by_user_and_time(sent: pl.DataFrame) -> tuple[Integers, Integers]:
    """Return the order of records by user and second, and the sorted keys that hold both."""
    seconds = sent["timestamp"].dt.epoch("s").to_numpy()
    users = sent["user"].rank("dense").to_numpy().astype(np.int64)
    keys = (users << _SECOND_BITS) + (seconds - (seconds.min() if len(seconds) else 0))
    order = np.argsort(keys, kind="stable")
    return order, keys[order]
