"""Which records also tell of two answers that one is better, or of one that it is liked or not."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from everswarm.schemas.dataset import Split
from everswarm.settings import CurationRules
from everswarm.training.curation.language import UNDETERMINED
from everswarm.training.curation.marks import SEPARATOR
from everswarm.training.curation.prepare import DISLIKED_RATING, LIKED_RATING
from everswarm.training.curation.shares import quotas

# A record that these steps dropped may still be compared; what is wrong with the others is wrong with the answers, too.
_HARMLESS = ("target", "question", "balance", "user share", "split", "training cap")

PREFERENCE = dict.fromkeys(("id", "user", "split", "messages", "chosen", "rejected", "source"), pl.String)
DESIRABILITY = {
    **dict.fromkeys(("id", "user", "split", "messages", "completion"), pl.String),
    "label": pl.Boolean,
}


def with_preference_split(
    frame: pl.DataFrame, split_of_user: Mapping[str, Split], rules: CurationRules
) -> pl.DataFrame:
    """Return `frame` with `preference_split`: where the preferences of a record go, null for nowhere.

    A question that an example has is in that example's split; another in that of the first record that has it. A
    record whose user is in another split is left out, so that here, too, no user and no question is in two splits.
    Records without a target went past the steps on language and suites, so both are asked about here.
    """
    step = pl.col("dropped").str.split(SEPARATOR).list.first()
    may_be = pl.col("usable") & (pl.col("dropped").is_null() | step.is_in(_HARMLESS)) & ~pl.col("contaminated")
    if rules.languages:
        may_be &= pl.col("language").is_in([*rules.languages, UNDETERMINED])
    of_user = pl.col("user").replace_strict(dict(split_of_user), default=None, return_dtype=pl.String)
    frame = frame.with_columns(of_user=pl.when(may_be).then(of_user))
    of_example = pl.col("of_user").filter(pl.col("dropped").is_null()).first().over("compared_cluster")
    of_first = pl.col("of_user").drop_nulls().first().over("compared_cluster")
    of_question = pl.coalesce(of_example, of_first)
    frame = frame.with_columns(preference_split=pl.when(of_question == pl.col("of_user")).then("of_user"))
    is_train = pl.col("preference_split") == "train"
    compared = 1 + pl.col("votes").cast(pl.Int64)  # rows that a record may become, in the files together
    counts = dict(frame.filter(is_train).group_by("user").agg(compared.sum()).iter_rows())
    limit = pl.col("user").replace_strict(quotas(counts, share=rules.max_user_share), default=0, return_dtype=pl.Int64)
    so_far = compared.cum_sum().over("user", "preference_split", order_by=["rank", "id"])
    fits = pl.when(is_train).then(so_far <= limit).otherwise(statement=True)
    return frame.drop("of_user").with_columns(preference_split=pl.when(fits).then("preference_split"))


def preferences(batch: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs (columns of `PREFERENCE`) of the rows that have a `preference_split`, in their order.

    A person's correction is better than the answer; an answer is better than those that lost a vote against it, unless
    it rests on what a tool found.
    """
    rows = batch.filter(pl.col("preference_split").is_not_null() & (pl.col("response").str.strip_chars() != ""))
    corrected = rows.filter((pl.col("source") == "correction") & ~pl.col("by_swarm")).with_columns(
        chosen="target", rejected="response", kind=pl.lit("correction")
    )
    voted = (
        rows.filter(~pl.col("looked_up"))
        .explode("better_than", empty_as_null=False)
        .with_columns(chosen="response", rejected="better_than", kind=pl.lit("vote"))
    )
    both = pl.concat([corrected.drop("better_than"), voted.drop("better_than")]).sort("id", maintain_order=True)
    found = both.select(
        "id", "user", pl.col("preference_split").alias("split"), "messages", "chosen", "rejected", source="kind"
    )
    loser = pl.col("rejected").str.strip_chars()
    return found.filter((loser != "") & (loser != pl.col("chosen").str.strip_chars()))


def desirabilities(batch: pl.DataFrame) -> pl.DataFrame:
    """Return the answers that somebody liked or not (columns of `DESIRABILITY`), in the order of the rows.

    One that rests on what a tool found is never desirable: a student that cannot look it up would make it up.
    """
    label = (
        pl.when(pl.col("rating") >= LIKED_RATING)
        .then(statement=True)
        .when(pl.col("rating") <= DISLIKED_RATING)
        .then(statement=False)
        .when(pl.col("rating").is_null())
        .then("liked")
    )
    rows = batch.filter(pl.col("preference_split").is_not_null() & (pl.col("response").str.strip_chars() != ""))
    rows = rows.with_columns(label=label).filter(
        pl.col("label").is_not_null() & ~(pl.col("label") & pl.col("looked_up"))
    )
    found = rows.select("id", "user", "messages", "label", split="preference_split", completion="response")
    return found.select(*DESIRABILITY)
