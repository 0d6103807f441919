"""How much people agree who sort the same records. Pure: takes labels, gives a number, knows no review."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from math import comb


def agreeing_share(records: Iterable[Sequence[Hashable]]) -> float | None:
    """Return the share of pairs of labels on one record that are the same, 0 to 1; None where no record has two.

    Args:
        records: of each record the labels that it was given, one a person.
    """
    same = pairs = 0
    for labels in records:
        pairs += comb(len(labels), 2)
        same += sum(comb(count, 2) for count in Counter(labels).values())
    return same / pairs if pairs else None


def krippendorff_alpha(records: Iterable[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha for nominal labels: 1 where people always agree, 0 where they do as chance would.

    alpha = 1 - D_o / D_e: the disagreement that is observed within records, over the one that is expected if the same
    labels lay anywhere (K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C). Below 0 people
    disagree more than chance. None where no record has two labels, or where all of these are the same: then nobody can
    tell agreement from habit.

    Args:
        records: of each record the labels that it was given, one a person; those with fewer than two do not count.
    """
    totals: Counter[Hashable] = Counter()
    observed = 0.0
    for labels in records:
        if len(labels) < 2:
            continue
        counts = Counter(labels)
        totals += counts
        observed += _unequal_pairs(counts) / (len(labels) - 1)
    expected = _unequal_pairs(totals)
    return 1 - (totals.total() - 1) * observed / expected if expected else None


def _unequal_pairs(counts: Counter[Hashable]) -> int:
    """Return how many ordered pairs of different labels there are."""
    return counts.total() ** 2 - sum(count**2 for count in counts.values())
