"""Texts as words and word n-grams, for many texts at once: what similarity, language and contamination are read from.

A word is a run of letters, marks and digits in lower case, however it is encoded (NFKC, nothing invisible); each
character of a script without spaces is one.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

_WITHOUT_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"[{_WITHOUT_SPACES}]|[\p{{L}}\p{{M}}\p{{N}}&&[^{_WITHOUT_SPACES}]]+"
ANY_WORD = r"[\p{L}\p{M}\p{N}]"  # what every word begins with
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


class Grams(NamedTuple):
    """Hashes of the n-grams of several texts, one text after the other."""

    hashes: Hashes  # (grams of all texts,)
    offsets: Offsets  # (texts + 1,): those of text i are hashes[offsets[i] : offsets[i + 1]]


class Words:
    """The words of several texts."""

    def __init__(self, texts: pl.Series) -> None:
        """Cut `texts` (String, null is empty) into words."""
        spelt = texts.fill_null("").str.normalize("NFKC").str.replace_all(r"\p{Cf}", "")
        found = spelt.str.to_lowercase().str.extract_all(_WORD)
        self.counts = found.list.len().to_numpy().astype(np.int64)  # (texts,)
        self.offsets: Offsets = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        flat = found.explode(empty_as_null=False).cast(pl.String).to_arrow()
        encoded = flat.dictionary_encode()
        self.vocabulary: list[str] = encoded.dictionary.to_pylist()  # the distinct words
        self.codes = encoded.indices.to_numpy(zero_copy_only=False)  # (words of all texts,) into `vocabulary`

    @cached_property
    def hashes(self) -> Hashes:
        """A hash of each word, (words of all texts,); the same on every machine."""
        of_word = np.array([xxhash.xxh3_64_intdigest(word.encode()) for word in self.vocabulary], dtype=np.uint64)
        return of_word[self.codes] if len(of_word) else of_word

    def grams(self, length: int) -> Grams:
        """Return a hash of each run of `length` words; a text of fewer words has one, of all its words."""
        windows = np.maximum(self.counts - length + 1, np.minimum(self.counts, 1))
        offsets = np.concatenate([[0], np.cumsum(windows)]).astype(np.int64)
        starts = np.repeat(self.offsets[:-1], windows) + _counting(windows)
        lengths = np.repeat(np.minimum(self.counts, length), windows)
        mixed = np.zeros(len(starts), dtype=np.uint64)
        for step in range(length):
            inside = lengths > step
            word = self.hashes[np.where(inside, starts + step, 0)] if len(self.hashes) else mixed
            mixed = np.where(inside, _mix(mixed, word), mixed)
        return Grams(mixed, offsets)


def _mix(state: Hashes, word: Hashes) -> Hashes:
    state = (state ^ (state >> _SHIFT)) * _MULTIPLIER
    return state + word


def _counting(lengths: Offsets) -> Offsets:
    """Return 0, 1, 2 … for each of `lengths`, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0, dtype=np.int64) - np.repeat(ends - lengths, lengths)
