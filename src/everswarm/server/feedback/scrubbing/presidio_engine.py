"""The recognisers of presidio beside ours: patterns only, no language model, no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from everswarm.errors import MissingExtraError
from everswarm.server.feedback.scrubbing.found import Found, Kind, Scrubber, united
from everswarm.server.feedback.scrubbing.patterns import pattern_scrubber

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer

# Its e-mail pattern needs time with the square of a word's length, so it sees pieces of at most this many characters.
_PIECE = re.compile(r"[^\n]{1,2000}(?!\S)|[^\n]{1,2000}")
_LEAST_SCORE = 0.5  # of presidio, 0 to 1; below it a bare digit run may be a card


class _PresidioScrubber:
    """Adds what presidio's recognisers are sure of to what our patterns find."""

    def __init__(self, recognizers: dict[Kind, EntityRecognizer]) -> None:
        self._recognizers = recognizers
        self._patterns = pattern_scrubber()

    def find(self, text: str) -> list[Found]:
        return united([*self._patterns.find(text), *self._theirs(text)])

    def _theirs(self, text: str) -> Iterator[Found]:
        for piece in _PIECE.finditer(text):
            for kind, recognizer in self._recognizers.items():
                results = recognizer.analyze(piece.group(), recognizer.supported_entities, None)
                for one in results or []:
                    start, end = piece.start() + one.start, piece.start() + one.end
                    if one.score >= _LEAST_SCORE and not _is_behind_a_point(text, start):
                        yield Found(start, end, kind)


def _is_behind_a_point(text: str, start: int) -> bool:
    """Whether these are the digits behind a decimal point."""
    return text[max(0, start - 1) : start] in (".", ",") and text[start].isdigit()


def presidio_scrubber() -> Scrubber:
    """Return a scrubber of presidio's recognisers for e-mail, card and IBAN, and of ours for all kinds.

    Its IP recogniser takes version numbers for addresses, its phone recogniser order numbers and 10 ms a KB: these
    kinds are ours alone.

    Raises:
        MissingExtraError: the presidio extra is not installed.
    """
    try:
        from presidio_analyzer.predefined_recognizers import CreditCardRecognizer, IbanRecognizer
    except ImportError as error:
        raise MissingExtraError("Scrubbing with presidio", "presidio") from error
    return _PresidioScrubber({"email": _email_recognizer(), "card": CreditCardRecognizer(), "iban": IbanRecognizer()})


def _email_recognizer() -> EntityRecognizer:
    """Return presidio's e-mail recogniser with the bundled list of public suffixes; its own fetches one."""
    from presidio_analyzer.predefined_recognizers import EmailRecognizer

    extract = import_module("tldextract").TLDExtract(cache_dir=None, suffix_list_urls=())
    recognizer = EmailRecognizer()
    recognizer.validate_result = lambda pattern_text: extract(pattern_text).fqdn != ""
    return recognizer


def scrubber_of(name: Literal["patterns", "presidio"]) -> Scrubber:
    """Return the scrubber that the settings name.

    Raises:
        MissingExtraError: `presidio` was asked for and is not installed.
    """
    return presidio_scrubber() if name == "presidio" else pattern_scrubber()
