"""From a snapshot to a dataset: the steps in order, and the account of what each dropped.

One frame goes through all steps, with a row for each record of the snapshot. The texts stay with the engine until the
files are written; what is decided here is decided on narrow columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from everswarm.errors import BadRequestError, NotEnoughFeedbackError
from everswarm.schemas.dataset import SPLITS, DatasetCard, Dropped, Snapshot, Split, SuiteFingerprints
from everswarm.settings import CurationRules
from everswarm.training.curation.contamination import digest_of
from everswarm.training.curation.duplicates import drop_duplicates, drop_further_answers, with_clusters
from everswarm.training.curation.engine import Engine, LocalEngine, OnProgress, Rows, quietly
from everswarm.training.curation.files import DatasetFiles, write_files
from everswarm.training.curation.marks import counted, drop, kept, told
from everswarm.training.curation.phrases import phrase_grams, phrase_sample, planted
from everswarm.training.curation.poisoning import suspicions
from everswarm.training.curation.preferences import with_preference_split
from everswarm.training.curation.prepare import LIKED_RATING, NARROW, Preparation, prepare
from everswarm.training.curation.shares import balance
from everswarm.training.curation.split import (
    assign,
    assign_by_rank,
    cap_training,
    drop_for_fair_splits,
    drop_over_user_share,
    salted,
)

FINGERPRINTS = [f"{text}_{part}" for text in ("question", "target") for part in ("bands", "sketch")]
LEAST_PEOPLE = 3  # so that three splits share nobody


class Curated(NamedTuple):
    """A dataset version on disk."""

    files: DatasetFiles
    card: DatasetCard
    split_of_user: dict[str, Split]  # of everyone seen now or before; pin these next time


def curate(
    lines: Path,
    snapshot: Snapshot,
    *,
    out_dir: Path,
    seed: int,
    minimum_examples: int,
    rules: CurationRules | None = None,
    train_examples: int | None = None,
    suites: SuiteFingerprints | None = None,
    engine: Engine | None = None,
    on_progress: OnProgress = quietly,
) -> Curated:
    """Make the dataset of a snapshot. The same snapshot, rules and seed give the same bytes on every engine.

    Args:
        lines: the file of the snapshot: JSON lines of `FrozenInteraction`, by id.
        snapshot: what is known of it; users whom an earlier dataset has keep their split.
        out_dir: where the files are written.
        seed: decides wherever nothing else does.
        minimum_examples: fewer are refused.
        rules: default: `CurationRules()`.
        train_examples: caps the training split after the shares are settled.
        suites: what no example may hold; None: nothing is looked for.
        engine: default: this process.
        on_progress: is told the bytes of the snapshot that were read, of how many.

    Raises:
        NotEnoughFeedbackError: fewer than `minimum_examples` are usable, or a split would be empty.
        BadRequestError: a line is no such record, or the lines are not in the order of their ids.
    """
    rules, pinned = rules or CurationRules(), snapshot.split_of_user
    given_seed, seed = seed, salted(seed, snapshot.data.sha256)  # or who chooses ids could choose what is drawn
    hashes = np.unique(np.array(suites.hashes if suites else [], dtype=np.uint64))
    preparation = Preparation(rules, seed, hashes, suites.words if suites else 1, lines.name)
    with engine or LocalEngine(processes=1) as opened:
        rows = opened.apply(partial(prepare, preparation=preparation), lines, on_progress=on_progress)
        frame = rows.columns(list(NARROW))
        _check_order(frame["id"], name=lines.name)
        frame, suspected = _set_aside(frame, rows, rules=rules, seed=seed)
        frame = drop_duplicates(with_clusters(frame, rules).drop(FINGERPRINTS))
        frame = balance(drop_further_answers(frame), rules)
        usable = frame.filter(kept)["user"]
        frame, split_of_user = _split(frame, rules, pinned=pinned, seed=seed, train_examples=train_examples)
        _require_enough(frame, usable=usable, minimum=minimum_examples)
        others = set(frame.filter("usable")["user"]) - split_of_user.keys() - pinned.keys()
        split_of_user |= assign_by_rank(others, seed=seed)
        frame = with_preference_split(frame, {**pinned, **split_of_user}, rules)
        files = write_files(rows, frame, suspected, out_dir=out_dir)
    parents = [snapshot.data.sha256, *([digest_of(suites)] if suites else [])]
    card = _card(frame, suspected, files, snapshot, rules=rules, seed=given_seed, parents=parents)
    return Curated(files, card, dict(sorted({**pinned, **split_of_user}.items())))


def _set_aside(
    frame: pl.DataFrame, rows: Rows, *, rules: CurationRules, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop what is in the evaluation suites and what looks like an attempt to steer the model; return that, too.

    Before duplicates are dropped: else an attacker's copy takes the place of the honest record, and is then set aside.
    """
    frame = drop(frame, "contamination", {"shares words with an evaluation suite": pl.col("contaminated")})
    if not rules.poisoning_defence:
        return frame, pl.DataFrame(schema={"id": pl.String, "reason": pl.String})
    sample = phrase_sample(frame, seed=seed)
    read = rows.batches(["id", "user", "target"])
    grams = pl.concat([phrase_grams(batch, sample) for batch in read])
    phrases = planted(grams, sample)
    found = suspicions(frame, phrases)
    listed = phrases.group_by("user").agg(pl.col("gram").alias("grams"))
    frame = frame.join(
        found.select("id", pl.col("reason").alias("suspected")), on="id", how="left", maintain_order="left"
    )
    frame = drop(
        frame,
        "poisoning",
        {
            f"{reason}, for people to look at": pl.col("suspected") == reason
            for reason in sorted(found["reason"].unique())
        },
    )
    return frame.drop("suspected"), found.join(listed, on="user", how="left", maintain_order="left")


def _split(
    frame: pl.DataFrame, rules: CurationRules, *, pinned: Mapping[str, Split], seed: int, train_examples: int | None
) -> tuple[pl.DataFrame, dict[str, Split]]:
    assigned = assign(frame, pinned=pinned, share=rules.max_user_share, seed=seed)
    of_user = pl.col("user").replace_strict(assigned, default=None, return_dtype=pl.String)
    frame = frame.with_columns(split=of_user)
    frame = drop_over_user_share(frame, share=rules.max_user_share)
    frame = drop_for_fair_splits(frame, seed=seed)
    frame = frame.with_columns(fair=kept)
    return cap_training(frame, train_examples, seed=seed), assigned


def _check_order(ids: pl.Series, *, name: str) -> None:
    in_order = (ids.head(-1) < ids.tail(-1)) if len(ids) > 1 else pl.Series([True])
    if not in_order.all():
        first = int((~in_order).arg_true()[0])
        raise BadRequestError(
            f"{name} should hold each id once, in the order of the ids, and {ids[first + 1]!r} follows {ids[first]!r}. "
            "Sort the lines by id and remove what is there twice."
        )


def _require_enough(frame: pl.DataFrame, *, usable: pl.Series, minimum: int) -> None:
    left = frame.filter(kept)["split"].value_counts()
    found = int(left["count"].sum())
    if found >= minimum and len(left) == len(SPLITS):
        return
    raise NotEnoughFeedbackError(
        f"{found} examples to learn from were found, and {minimum} are needed, of at least {LEAST_PEOPLE} people, "
        f"so that training, validation and test share nobody. {len(usable)} were usable before the split, of "
        f"{usable.n_unique()} people. Dropped: {told(counted(frame['dropped']))}. "
        f"Collect more corrections and ratings of {LIKED_RATING} or 5 with consent, then start a cycle."
    )


def _card(
    frame: pl.DataFrame,
    suspected: pl.DataFrame,
    files: DatasetFiles,
    snapshot: Snapshot,
    *,
    rules: CurationRules,
    seed: int,
    parents: list[str],
) -> DatasetCard:
    dropped = counted(frame["dropped"])
    if snapshot.without_consent:
        dropped.insert(
            0, Dropped(step="consent", reason="no consent, left out of the snapshot", count=snapshot.without_consent)
        )
    left = frame.filter(kept)
    fair, examples = _counts(frame.filter("fair")["split"]), _counts(left["split"])
    users = _counts(left.unique(["split", "user"])["split"])
    heaviest = max(_counts(left.filter(pl.col("split") == "train")["user"]).values(), default=0)
    return DatasetCard(
        read=len(frame) + snapshot.without_consent,
        dropped=dropped,
        examples={split: examples.get(split, 0) for split in SPLITS},
        users={split: users.get(split, 0) for split in SPLITS},
        shares={split: round(fair.get(split, 0) / max(sum(fair.values()), 1), 4) for split in SPLITS},
        sources=_counts(left["source"]),
        tasks=_counts(left["task"]),
        languages=_counts(left["language"]),
        preferences=files.preference_counts,
        desirabilities=files.desirability_counts,
        for_review=_counts(suspected["reason"]),
        masked=dict(sorted(snapshot.masked.items())),
        largest_user_share=round(heaviest / max(examples.get("train", 0), 1), 4),
        rules=rules,
        seed=seed,
        parents=parents,
    )


def _counts(column: pl.Series) -> dict[str, int]:
    return dict(sorted(column.value_counts(sort=False).iter_rows()))
