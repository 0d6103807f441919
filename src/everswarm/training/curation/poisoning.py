"""Records that look like an attempt to steer the model. They go to people before anything learns from them.

Each sign is weighed against what other users do, so that where many write much, import old records or share a template
nobody is suspected. Records that a review accepted and those of the swarm are never suspected; the former tell what is
usual all the same.

Not found: fewer than 10 copies of an answer, a burst whose timestamps were made up, phrases that `phrases` misses, and
false answers in a person's own plain words. What is not found, the share cap a user must bear.
"""

from __future__ import annotations

import hashlib
from typing import Final

import polars as pl

from everswarm.schemas.review import Suspected
from everswarm.training.curation.bursts import bursts
from everswarm.training.curation.near_copies import COLUMNS as FINGERPRINTS
from everswarm.training.curation.near_copies import near_copies

NARROW: Final = ("id", "user", "timestamp", "source", "agreement", "target_words")
COLUMNS: Final = tuple(dict.fromkeys((*NARROW, "dropped", "by_swarm", "review", *FINGERPRINTS)))  # of the frame
SUSPICIONS: Final = pl.Schema(
    {
        "id": pl.String(),
        "user": pl.String(),
        "reason": pl.String(),  # a `Suspected`
        "score": pl.Float64(),  # from 0 to 1, the greater the more there is of what the reason names
        "campaign": pl.String(),
        "detail": pl.String(),
    }
)
CORRECTIONS: Final = 20  # of a user, to say how far they agree,
CORRECTION_WORDS: Final = 8  # each at least: 'A: 42' shares no word with a question, and need not
AGREEING_USERS: Final = 10  # with so many, to say how far people do
DEVIATIONS: Final = 6  # robust standard deviations below what is usual, and
LOW_AGREEMENT: Final = 0.15  # a smaller share of words than this, are disagreement
LEAST_DEVIATION: Final = 0.02
_NORMAL = 1.4826  # standard deviations in a median absolute deviation
_REASONS: tuple[Suspected, ...] = (
    "planted phrase",
    "near copies",
    "burst",
    "disagreement",
)  # the first where scores tie


def suspicions(frame: pl.DataFrame, phrases: pl.DataFrame) -> pl.DataFrame:
    """Return one row (`SUSPICIONS`) for each suspicious record, by id, with the reason that scores highest.

    Args:
        frame: one row a record, with `COLUMNS`, in any order.
        phrases: of `phrases.planted`.
    """
    by_people = frame["dropped"].is_null() & ~frame["by_swarm"].fill_null(value=False)
    suspect = (frame["review"].cast(pl.String) != "accepted").fill_null(value=True)
    records = frame.select(NARROW).with_columns(suspect=suspect).filter(by_people)
    found: dict[Suspected, pl.DataFrame] = {
        "planted phrase": planted_phrases(records, phrases),
        "near copies": near_copies(frame, by_people & suspect),
        "burst": bursts(records),
        "disagreement": disagreements(records),
    }
    together = pl.concat(_named(reason, found[reason]) for reason in _REASONS)
    strongest = together.sort("id", "score", "weight", descending=[False, True, False]).unique("id", keep="first")
    told = strongest.join(records.select("id", "user"), on="id").sort("id")
    return told.select(pl.col(name).cast(kind) for name, kind in SUSPICIONS.items())


def planted_phrases(records: pl.DataFrame, phrases: pl.DataFrame) -> pl.DataFrame:
    """Return all records of users who plant phrases: (id, key, score, detail), with the user as the key.

    The score is that of the phrase that stands out most: its share of the user's sample x (1 - that of the others').
    """
    score = pl.col("own_share") * (1 - pl.col("others_share"))
    clearest = phrases.with_columns(score=score).sort(["score", "gram"], descending=[True, False])
    clearest = clearest.group_by("user", maintain_order=True).first()
    detail = pl.format(
        "{} of {} of this user's records that were read again have the same words, which {} % of other people's have",
        (pl.col("own_share") * pl.col("sampled")).round().cast(pl.UInt32),
        "sampled",
        (100 * pl.col("others_share")).round(2),
    )
    return _of_users(records.filter("suspect"), clearest.select("user", "score", detail=detail))


def disagreements(records: pl.DataFrame) -> pl.DataFrame:
    """Return the corrections of users who agree with nothing: (id, key, score, detail), with the user as the key.

    Of each user with `CORRECTIONS` the median agreement counts, so that a heavy one does not set the measure. The score
    is d / (d + 6), with d the robust standard deviations below the median of users: 0.5 at the limit.
    """
    corrects = (pl.col("source").cast(pl.String) == "correction") & (pl.col("target_words") >= CORRECTION_WORDS)
    known = records.filter(corrects, pl.col("agreement").is_not_null())
    users = known.group_by("user").agg(pl.len(), median=pl.col("agreement").cast(pl.Float64).median())
    users = users.filter(pl.col("len") >= CORRECTIONS)
    if len(users) < AGREEING_USERS:
        return _of_users(known, users.head(0).select("user", score=pl.lit(0.0), detail=pl.lit("")))
    usual = pl.col("median").median()
    deviation = pl.max_horizontal(_NORMAL * (pl.col("median") - usual).abs().median(), pl.lit(LEAST_DEVIATION))
    users = users.with_columns(usual=usual, deviations=(usual - pl.col("median")) / deviation)
    low = users.filter(pl.col("deviations") > DEVIATIONS, pl.col("median") < LOW_AGREEMENT)
    detail = pl.format(
        "{} corrections have {} % of their words from the question or the answer; {} % are usual",
        "len",
        (100 * pl.col("median")).round(1),
        (100 * pl.col("usual")).round(1),
    )
    score = pl.col("deviations") / (pl.col("deviations") + DEVIATIONS)
    return _of_users(known.filter("suspect"), low.select("user", score=score, detail=detail))


def _of_users(records: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    return records.join(told, on="user").select("id", "score", "detail", key="user")


def _named(reason: Suspected, found: pl.DataFrame) -> pl.DataFrame:
    """Add the reason, its weight, and the campaign: the same for a user or cluster on every machine."""
    keys = found["key"].unique()
    names = [hashlib.sha256(f"{reason}\0{key}".encode()).hexdigest()[:16] for key in keys]
    campaigns = pl.DataFrame({"key": keys, "campaign": names}, schema={"key": pl.String, "campaign": pl.String})
    return found.join(campaigns, on="key").select(
        "id", "score", "detail", "campaign", reason=pl.lit(reason), weight=pl.lit(_REASONS.index(reason))
    )
