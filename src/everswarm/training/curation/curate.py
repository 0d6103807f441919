"""From judged interactions to a dataset: the steps in order, and the account of what each dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from everswarm.errors import NotEnoughFeedbackError
from everswarm.schemas.dataset import SPLITS, DatasetCard, Dropped, Example, Split
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.training.curation.split import (
    assign_users,
    cap_heavy_users,
    count_by_user,
    largest_fair_sizes,
    seeded_rank,
)
from everswarm.training.curation.steps import (
    LIKED_RATING,
    Pair,
    choose_targets,
    counted,
    drop_exact_duplicates,
    keep_consented,
    keep_one_a_question,
    keep_right_lengths,
)


class Curated(NamedTuple):
    """A dataset in memory."""

    examples: list[Example]  # by split, then by id
    card: DatasetCard
    split_of_user: dict[str, Split]  # of everyone seen now or before; pin these next time


def curate(
    records: Iterable[JudgedInteraction],
    *,
    snapshot_sha256: str,
    seed: int,
    minimum_examples: int,
    train_examples: int | None = None,
    pinned: Mapping[str, Split] | None = None,
) -> Curated:
    """Return the dataset of a snapshot; `train_examples` caps the training split after the shares are settled.

    Raises:
        NotEnoughFeedbackError: fewer than `minimum_examples` are usable, or a split would be empty.
    """
    everything = list(records)
    pairs, dropped = usable_pairs(everything)
    assigned = assign_users(count_by_user(pairs), pinned=pinned or {}, seed=seed)
    by_split, over_share = fair_splits(pairs, assigned, seed=seed)
    dropped += over_share
    _require_enough(by_split, usable=len(pairs), users=len(assigned), minimum=minimum_examples, dropped=dropped)
    total = sum(len(group) for group in by_split.values())
    shares = {split: round(len(by_split[split]) / total, 4) for split in SPLITS}
    by_split["train"], over_cap = cap_training(by_split["train"], train_examples, seed=seed)
    dropped += over_cap
    examples = [_example(pair, split) for split in SPLITS for pair in sorted(by_split[split], key=lambda pair: pair.id)]
    card = DatasetCard(
        read=len(everything),
        dropped=dropped,
        examples={split: len(by_split[split]) for split in SPLITS},
        users={split: len(count_by_user(by_split[split])) for split in SPLITS},
        shares=shares,
        sources=dict(sorted(Counter(example.source for example in examples).items())),
        seed=seed,
        parents=[snapshot_sha256],
    )
    return Curated(examples, card, dict(sorted({**(pinned or {}), **assigned}.items())))


def usable_pairs(records: Sequence[JudgedInteraction]) -> tuple[list[Pair], list[Dropped]]:
    """Return the pairs that pass every filter, and what the filters dropped."""
    consented, dropped = keep_consented(records)
    kept = choose_targets(consented)
    dropped += kept.dropped
    for step in (keep_right_lengths, drop_exact_duplicates, keep_one_a_question):
        kept = step(kept.pairs)
        dropped += kept.dropped
    return kept.pairs, dropped


def fair_splits(
    pairs: Sequence[Pair], assigned: Mapping[str, Split], *, seed: int
) -> tuple[dict[Split, list[Pair]], list[Dropped]]:
    """Return the pairs by split, with the fewest dropped that bring all shares within tolerance."""
    groups: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        groups[assigned[pair.user]].append(pair)
    sizes = largest_fair_sizes({split: len(group) for split, group in groups.items()})
    fair = {split: cap_heavy_users(group, size=sizes[split], seed=seed) for split, group in groups.items()}
    over = len(pairs) - sum(sizes.values())
    return fair, counted("split", {"share cap: more than 80/10/10 by user leaves room for": over})


def cap_training(pairs: Sequence[Pair], train_examples: int | None, *, seed: int) -> tuple[list[Pair], list[Dropped]]:
    """Return `train_examples` of the pairs at most, chosen by the seed."""
    ranked = sorted(pairs, key=lambda pair: seeded_rank(pair.id, seed=seed))
    kept = ranked[:train_examples]
    return kept, counted("training cap", {f"over {train_examples} training examples": len(ranked) - len(kept)})


def _example(pair: Pair, split: Split) -> Example:
    return Example(
        id=pair.id, user=pair.user, split=split, messages=pair.messages, target=pair.target, source=pair.source
    )


def _require_enough(
    by_split: Mapping[Split, Sequence[Pair]], *, usable: int, users: int, minimum: int, dropped: Sequence[Dropped]
) -> None:
    found = sum(len(group) for group in by_split.values())
    if found >= minimum and all(by_split.values()):
        return
    reasons = "; ".join(f"{item.step}: {item.count} ({item.reason})" for item in dropped) or "nothing"
    raise NotEnoughFeedbackError(
        f"This cycle found {found} examples to learn from, and needs {minimum}, of at least 3 people, so that "
        f"training, validation and test share nobody. {usable} were usable before the split, of {users} people. "
        f"Dropped: {reasons}. "
        f"Collect more corrections and ratings of {LIKED_RATING} or 5 with consent, then start a cycle."
    )
