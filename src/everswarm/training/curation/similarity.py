"""How alike texts are, without comparing each with each: MinHash of word n-grams, and bands that alike texts share.

Broder, "On the resemblance and containment of documents", 1997; the sketch keeps one byte of each of the 128 minima
(b-bit MinHash: Li and König, WWW 2010), enough to estimate the similarity of two texts to about 0.04.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from rensa import RMinHash

from everswarm.training.curation.words import Words

GRAM_WORDS = 3  # of one shingle
MINIMA = 128  # hashes of one text
BANDS = 16  # of 8 minima each: two texts of similarity 0.8 share one with 95 %, of 0.5 with 6 %
SEED = 7
_ROWS = MINIMA // BANDS
_CHANCE = 1 / 256  # that two bytes of different minima are the same
PAIRS_AT_ONCE = 500_000

Bands = npt.NDArray[np.uint64]  # (texts, BANDS)
Sketches = npt.NDArray[np.uint8]  # (texts, MINIMA)


class Fingerprints(NamedTuple):
    """What is kept of texts to find those that are alike. A text without words is like none."""

    bands: Bands
    sketches: Sketches


def fingerprints(words: Words) -> Fingerprints:
    """Return the fingerprints of texts."""
    grams = words.grams(GRAM_WORDS)
    texts = len(words.counts)
    if texts == 0:
        return Fingerprints(np.zeros((0, BANDS), np.uint64), np.zeros((0, MINIMA), np.uint8))
    digests = RMinHash.digest_matrix_from_flat_token_hashes(grams.hashes, grams.offsets.astype(np.uint64), MINIMA, SEED)
    minima = np.array(digests.to_rows(), dtype=np.uint64).reshape(texts, MINIMA)
    bands = np.zeros((texts, BANDS), dtype=np.uint64)
    for row in range(_ROWS):
        bands = (bands ^ (bands >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15) + minima[:, row::_ROWS]
    bands += np.arange(BANDS, dtype=np.uint64) << np.uint64(56)  # so that two bands are never the same by accident
    return Fingerprints(bands, (minima & np.uint64(0xFF)).astype(np.uint8))


def clusters(
    bands: Bands, sketches: Sketches, has_words: npt.NDArray[np.bool_], *, similarity: float
) -> npt.NDArray[np.int64]:
    """Return the cluster of each text, (texts,): the place of its first text, by links of at least `similarity`.

    In each band every text is compared with the first that has the band, so that what a thousand copies cost grows
    with the thousand and not with its square. All bands together are one more, so that texts of the same words find
    each other even where others come first in every band.
    """
    texts = len(bands)
    pairs = []  # first * texts + second
    rows = np.flatnonzero(has_words)
    for band in (*bands.T, _together(bands)):
        order = rows[np.argsort(band[rows], kind="stable")]
        values = band[order]
        starts = (
            np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, int)
        )
        first = np.repeat(order[starts], np.diff(np.append(starts, len(values))))
        differs = first != order
        pairs.append(first[differs] * texts + order[differs])
    first, second = np.divmod(np.unique(np.concatenate(pairs)), max(texts, 1))
    alike = _similarity(sketches, first, second) >= similarity
    return _components(texts, first[alike], second[alike])


def _together(bands: Bands) -> npt.NDArray[np.uint64]:
    mixed = np.zeros(len(bands), dtype=np.uint64)
    for band in bands.T:
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15) + band
    return mixed


def _similarity(
    sketches: Sketches, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    shares = np.empty(len(first))
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        shares[part] = (sketches[first[part]] == sketches[second[part]]).mean(axis=1)
    return (shares - _CHANCE) / (1 - _CHANCE)


def _components(texts: int, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the smallest member of each one's component: labels fall along the links until none falls any more."""
    labels = np.arange(texts)
    while len(first):
        lowest = np.minimum(labels[first], labels[second])
        before = labels.copy()
        np.minimum.at(labels, labels[first], lowest)
        np.minimum.at(labels, labels[second], lowest)
        np.minimum.at(labels, first, lowest)
        np.minimum.at(labels, second, lowest)
        labels = labels[labels]
        if np.array_equal(before, labels):
            break
    return labels


def as_columns(found: Fingerprints, prefix: str) -> dict[str, pl.Series]:
    """Return `found` as two columns of a frame."""
    return {
        f"{prefix}_bands": pl.Series(found.bands, dtype=pl.Array(pl.UInt64, BANDS)),
        f"{prefix}_sketch": pl.Series(found.sketches, dtype=pl.Array(pl.UInt8, MINIMA)),
    }
