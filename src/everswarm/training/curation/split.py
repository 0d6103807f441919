"""80/10/10 with no user in two splits, so that a test score speaks of people that training never saw."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from everswarm.schemas.dataset import SPLITS, Split
from everswarm.training.curation.marks import drop, kept
from everswarm.training.curation.shares import place_within, quotas

TARGET_PERCENT: dict[Split, int] = {"train": 80, "validation": 10, "test": 10}
_SPLIT_OF_HUNDREDTH = [split for split in SPLITS for _ in range(TARGET_PERCENT[split])]
TOLERANCE_PERCENT = 3  # points that a share may be off its target


def assign(frame: pl.DataFrame, *, pinned: Mapping[str, Split], share: float, seed: int) -> dict[str, Split]:
    """Return the split of each user who has rows that are still there, by what the cap of `share` leaves of them."""
    counts = dict(frame.filter(kept)["user"].value_counts(sort=False).iter_rows())
    capped = {str(user): count for user, count in quotas(counts, share=share).items()}
    return assign_users(capped, pinned=pinned, seed=seed)


def salted(seed: int, sha256: str) -> int:
    """Return a seed that nobody knew before the snapshot with this digest was frozen."""
    return int(hashlib.sha256(f"{seed}\0{sha256}".encode()).hexdigest()[:16], 16)


def drop_over_user_share(frame: pl.DataFrame, *, share: float) -> pl.DataFrame:
    """Drop, of the training split, what one user has over `share` of it."""
    is_train = pl.col("split") == "train"
    counts = frame.filter(kept & is_train)["user"].value_counts(sort=False)
    limits = quotas(dict(counts.iter_rows()), share=share)
    limit = pl.col("user").replace_strict(limits, default=0, return_dtype=pl.Int64)
    told = f"over {share:.0%} of the training split by one user"
    return drop(frame, "user share", {told: is_train & (place_within(["user"]) > limit)})


def drop_for_fair_splits(frame: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Drop the fewest rows that bring the shares of the splits within tolerance, of whoever has most."""
    counts = dict(frame.filter(kept)["split"].value_counts(sort=False).iter_rows())
    sizes = largest_fair_sizes({split: counts.get(split, 0) for split in SPLITS})
    reason = "share cap: more than 80/10/10 by user leaves room for"
    for split in SPLITS:
        frame = _shrink(frame, split, size=sizes[split], seed=seed, step="split", reason=reason)
    return frame


def cap_training(frame: pl.DataFrame, size: int | None, *, seed: int) -> pl.DataFrame:
    """Drop what the training split has over `size` rows, of whoever has most."""
    if size is None:
        return frame
    return _shrink(frame, "train", size=size, seed=seed, step="training cap", reason=f"over {size} training examples")


def _shrink(frame: pl.DataFrame, split: Split, *, size: int, seed: int, step: str, reason: str) -> pl.DataFrame:
    is_split = pl.col("split") == split
    counts = dict(frame.filter(kept & is_split)["user"].value_counts(sort=False).iter_rows())
    if sum(counts.values()) <= size:
        return frame
    limits = take_from_heaviest(counts, size=size, seed=seed)
    limit = pl.col("user").replace_strict(limits, default=0, return_dtype=pl.Int64)
    return drop(frame, step, {reason: is_split & (place_within(["user"]) > limit)})


def seeded_rank(text: str, *, seed: int) -> str:
    """Return a key that sorts texts in an order that depends on the seed alone."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest()


def assign_by_rank(users: Iterable[str], *, seed: int) -> dict[str, Split]:
    """Return the split of users who have no example, only preferences: by the seed alone, 80/10/10 in the long run."""
    return {user: _SPLIT_OF_HUNDREDTH[int(seeded_rank(user, seed=seed)[:8], 16) % 100] for user in sorted(users)}


def assign_users(records_of_user: Mapping[str, int], *, pinned: Mapping[str, Split], seed: int) -> dict[str, Split]:
    """Return the split of each user: heaviest first, each to the split that lacks most records of its target.

    Pinned users keep theirs. The last users go to splits that would stay empty.
    """
    assigned: dict[str, Split] = {user: pinned[user] for user in records_of_user if user in pinned}
    total = sum(records_of_user.values())
    missing = {split: total * TARGET_PERCENT[split] / 100 for split in SPLITS}
    for user, split in assigned.items():
        missing[split] -= records_of_user[user]
    empty = [split for split in SPLITS if split not in set(assigned.values())]
    free = [user for user in records_of_user if user not in pinned]
    free.sort(key=lambda user: (-records_of_user[user], seeded_rank(user, seed=seed)))
    for index, user in enumerate(free):
        choices: Sequence[Split] = empty if len(free) - index <= len(empty) else SPLITS
        split = max(choices, key=lambda split: missing[split])
        assigned[user] = split
        missing[split] -= records_of_user[user]
        if split in empty:
            empty.remove(split)
    return assigned


def largest_fair_sizes(available: Mapping[Split, int]) -> dict[Split, int]:
    """Return how many records of each split to keep: as many as possible with all shares within tolerance.

    All are 0 where no number of records fits, as when a split has none.
    """
    bounds = [available[split] * 100 // (percent - TOLERANCE_PERCENT) for split, percent in TARGET_PERCENT.items()]
    for total in range(min(sum(available.values()), *bounds), 0, -1):
        least = {split: -(-total * (percent - TOLERANCE_PERCENT) // 100) for split, percent in TARGET_PERCENT.items()}
        most = {
            split: min(available[split], total * (percent + TOLERANCE_PERCENT) // 100)
            for split, percent in TARGET_PERCENT.items()
        }
        possible = all(most[split] >= max(least[split], 1) for split in SPLITS)
        if possible and sum(least.values()) <= total <= sum(most.values()):
            return _shrink_to(total, most=most, least=least)
    return dict.fromkeys(SPLITS, 0)


def _shrink_to(total: int, *, most: Mapping[Split, int], least: Mapping[Split, int]) -> dict[Split, int]:
    """Take from the split that is furthest above its target, one by one, until `total` is left."""
    sizes = dict(most)
    while sum(sizes.values()) > total:
        above = [split for split in SPLITS if sizes[split] > least[split]]
        sizes[max(above, key=lambda split: sizes[split] * 100 - total * TARGET_PERCENT[split])] -= 1
    return sizes


def take_from_heaviest(counts: Mapping[str, int], *, size: int, seed: int) -> dict[str, int]:
    """Return how many records each user keeps of `size`: whoever has most gives first, so that light users stay."""
    heaviest = [(-count, seeded_rank(user, seed=seed), user) for user, count in counts.items()]
    heapq.heapify(heaviest)
    left = dict(counts)
    for _ in range(sum(counts.values()) - size):
        count, rank, user = heaviest[0]
        left[user] -= 1
        heapq.heapreplace(heaviest, (count + 1, rank, user))
    return left
