"""80/10/10 with no user in two splits, so that a test score speaks of people that training never saw."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from everswarm.schemas.dataset import SPLITS, Split
from everswarm.training.curation.steps import Pair

TARGET_PERCENT: dict[Split, int] = {"train": 80, "validation": 10, "test": 10}
TOLERANCE_PERCENT = 3  # points that a share may be off its target


def seeded_rank(text: str, *, seed: int) -> str:
    """Return a key that sorts texts in an order that depends on the seed alone."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest()


def assign_users(records_of_user: Mapping[str, int], *, pinned: Mapping[str, Split], seed: int) -> dict[str, Split]:
    """Return the split of each user: heaviest first, each to the split that lacks most records of its target.

    Pinned users keep theirs. The last users go to splits that would stay empty.
    """
    assigned: dict[str, Split] = {user: pinned[user] for user in records_of_user if user in pinned}
    total = sum(records_of_user.values())
    missing = {split: total * TARGET_PERCENT[split] / 100 for split in SPLITS}
    for user, split in assigned.items():
        missing[split] -= records_of_user[user]
    free = [user for user in records_of_user if user not in pinned]
    free.sort(key=lambda user: (-records_of_user[user], seeded_rank(user, seed=seed)))
    for index, user in enumerate(free):
        empty = [split for split in SPLITS if split not in assigned.values()]
        choices: Sequence[Split] = empty if len(free) - index <= len(empty) else SPLITS
        split = max(choices, key=lambda split: missing[split])
        assigned[user] = split
        missing[split] -= records_of_user[user]
    return assigned


def largest_fair_sizes(available: Mapping[Split, int]) -> dict[Split, int]:
    """Return how many records of each split to keep: as many as possible with all shares within tolerance.

    All are 0 where no number of records fits, as when a split has none.
    """
    for total in range(sum(available.values()), 0, -1):
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


def cap_heavy_users(pairs: Sequence[Pair], *, size: int, seed: int) -> list[Pair]:
    """Return `size` of the pairs, taking away from whoever has most, so that light users keep their voice."""
    queues: dict[str, list[Pair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: seeded_rank(pair.id, seed=seed)):
        queues[pair.user].append(pair)
    heaviest = [(-len(queue), user) for user, queue in queues.items()]
    heapq.heapify(heaviest)
    for _ in range(len(pairs) - size):
        count, user = heaviest[0]
        queues[user].pop()
        heapq.heapreplace(heaviest, (count + 1, user))
    return [pair for queue in queues.values() for pair in queue]


def count_by_user(pairs: Sequence[Pair]) -> Counter[str]:
    """Return the number of pairs of each user."""
    return Counter(pair.user for pair in pairs)
