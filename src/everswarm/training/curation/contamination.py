"""What evaluation suites are made of, in a form that can be handed over: hashes of runs of words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from everswarm.schemas.dataset import SuiteFingerprints
from everswarm.training.curation.words import Words

GRAM_WORDS = 13  # as is usual since GPT-3 (Brown et al., 2020, appendix C)


def suite_fingerprints(suites: Mapping[str, Sequence[tuple[str, str]]]) -> SuiteFingerprints:
    """Return the fingerprints of suites: name → what is asked and answered in it.

    A short answer, such as 'Negative.', is everybody's, and tells nothing.
    """
    pairs = [pair for suite in suites.values() for pair in suite]
    asked = Words(pl.Series([question for question, _ in pairs], dtype=pl.String))
    answered = Words(pl.Series([answer for _, answer in pairs], dtype=pl.String))
    is_long = np.repeat(answered.counts >= GRAM_WORDS, np.diff(answered.grams(GRAM_WORDS).offsets))
    hashes = np.concatenate([asked.grams(GRAM_WORDS).hashes, answered.grams(GRAM_WORDS).hashes[is_long]])
    return SuiteFingerprints(suites=sorted(suites), words=GRAM_WORDS, hashes=np.unique(hashes).tolist())


def digest_of(fingerprints: SuiteFingerprints) -> str:
    """Return the sha256 by which a dataset names the suites that it was kept clear of."""
    return hashlib.sha256(fingerprints.model_dump_json().encode()).hexdigest()
