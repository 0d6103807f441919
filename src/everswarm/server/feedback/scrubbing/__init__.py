"""Finds and masks personal data and secrets before a text leaves the server.

Takes the texts of one record, gives them with `[EMAIL_1]`-like placeholders and the counts of what was replaced.
Knows patterns, check digits and words of four languages; knows no names of people, no models and no network.
"""

from everswarm.server.feedback.scrubbing.found import KINDS, Found, Kind, Scrubber
from everswarm.server.feedback.scrubbing.masking import Masker
from everswarm.server.feedback.scrubbing.patterns import pattern_scrubber
from everswarm.server.feedback.scrubbing.presidio_engine import presidio_scrubber, scrubber_of
from everswarm.server.feedback.scrubbing.records import text_mask, without_personal_data

__all__ = [
    "KINDS",
    "Found",
    "Kind",
    "Masker",
    "Scrubber",
    "pattern_scrubber",
    "presidio_scrubber",
    "scrubber_of",
    "text_mask",
    "without_personal_data",
]
