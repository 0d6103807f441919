"""What evaluation suites are made of, in a form that can be handed over: hashes of runs of words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from everswarm.schemas.dataset import SuiteFingerprints
from everswarm.training.curation.words import Words

GRAM_WORDS = 13  # as is usual since GPT-3 (Brown et al., 2020, appendix C)


def suite_fingerprints(texts: Mapping[str, Sequence[str]]) -> SuiteFingerprints:
    """Return the fingerprints of suites: name → what is asked and answered in it."""
    everything = pl.Series([text for suite in texts.values() for text in suite], dtype=pl.String)
    hashes = np.unique(Words(everything).grams(GRAM_WORDS).hashes)
    return SuiteFingerprints(suites=sorted(texts), words=GRAM_WORDS, hashes=hashes.tolist())


def digest_of(fingerprints: SuiteFingerprints) -> str:
    """Return the sha256 by which a dataset names the suites that it was kept clear of."""
    return hashlib.sha256(fingerprints.model_dump_json().encode()).hexdigest()
