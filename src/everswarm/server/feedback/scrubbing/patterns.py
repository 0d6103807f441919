"""The default scrubber: our patterns and checks, and datafog for e-mail addresses that ours do not know."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from everswarm.server.feedback.scrubbing import (
    credentials,
    germanic_streets,
    internet,
    logins,
    passwords,
    places,
    romance_streets,
    street_words,
)
from everswarm.server.feedback.scrubbing.accounts import cards, ibans
from everswarm.server.feedback.scrubbing.digits import digit_runs, has_digit_run
from everswarm.server.feedback.scrubbing.folding import folded, small_letters
from everswarm.server.feedback.scrubbing.found import Found, Scrubber, united
from everswarm.server.feedback.scrubbing.number_places import NumberPlaces, number_places
from everswarm.server.feedback.scrubbing.phones import phones

_DIGIT = re.compile(r"[0-9]")
_LONG_WORD_LENGTH = 16  # characters; no key or token that shows by itself is shorter
_WORDS_OF_STREETS: tuple[tuple[frozenset[str], Callable[[str], Iterator[Found]]], ...] = (
    (street_words.BOX_WORDS, places.boxes),
    (street_words.ENGLISH_WORDS, germanic_streets.english_streets),
    (street_words.FRENCH_WORDS, romance_streets.french_streets),
)
_TELLING_WORDS = street_words.GERMAN_WORDS | internet.SPELT_WORDS | street_words.SPANISH_WORDS
_TELLING_WORDS = _TELLING_WORDS.union(*(words for words, _ in _WORDS_OF_STREETS))


class _PatternScrubber:
    """Looks with cheap tests first, so that ordinary text costs little."""

    def find(self, text: str) -> list[Found]:
        plain = folded(text)
        found: list[Found] = []
        lower = small_letters(plain.text)
        words = plain.text.split()
        telling = _TELLING_WORDS.intersection(words)
        _find_addresses_of_machines(plain.text, telling, found)
        _find_secrets(plain.text, words, found)
        cues = passwords.cues(lower)
        if cues:
            found += passwords.passwords(plain.text, lower, cues)
            found += logins.told(plain.text, cues)
        if "@" in plain.text or ":" in plain.text:
            found += logins.of_users(plain.text)
        if _DIGIT.search(plain.text) is not None:
            found += logins.in_commands(plain.text)
            if "uthorization" in plain.text or "earer " in plain.text:
                found += credentials.in_headers(plain.text)
            numbers = number_places(plain.text)
            if numbers.near_digits:
                _find_numbers(plain.text, found)
            _find_streets(plain.text, lower, telling, found, numbers)
        if not found:
            return found
        found = united(found)
        return [Found(*plain.span(one.start, one.end), one.kind) for one in found] if plain.dropped else found


def pattern_scrubber() -> Scrubber:
    """Return the default scrubber: no models, no network, thread-safe."""
    return _PatternScrubber()


def _find_addresses_of_machines(text: str, telling: frozenset[str], found: list[Found]) -> None:
    if "@" in text:
        found += internet.emails(text)
        found += internet.emails_by_datafog(text)
    if not internet.SPELT_WORDS.isdisjoint(telling) or internet.spells_at(text):
        found += internet.spelt_emails(text)
    if internet.may_hold_ip(text):
        found += internet.ips(text)


def _find_secrets(text: str, words: list[str], found: list[Found]) -> None:
    if "-----" in text and "PRIVATE KEY" in text:
        found += credentials.private_keys(text)
    if words and max(map(len, words)) >= _LONG_WORD_LENGTH and any(map(_is_long_with_letters, words)):
        found += credentials.prefixed(text)
        found += credentials.random_runs(text)


def _is_long_with_letters(word: str) -> bool:
    return len(word) >= _LONG_WORD_LENGTH and not word.isalpha() and word.swapcase() != word


def _find_numbers(text: str, found: list[Found]) -> None:
    if not has_digit_run(text):
        return
    for run in digit_runs(text):
        found += cards(text, run)
        found += phones(text, run)
    found += ibans(text)


def _find_streets(text: str, lower: str, telling: frozenset[str], found: list[Found], numbers: NumberPlaces) -> None:
    found += germanic_streets.german_streets(text, numbers.starts)
    if numbers.town_line or not street_words.GERMAN_WORDS.isdisjoint(telling):
        found += germanic_streets.german_places(text)
    for words, streets_of in _WORDS_OF_STREETS if telling else ():
        if not words.isdisjoint(telling):
            found += streets_of(text)
    if not street_words.SPANISH_WORDS.isdisjoint(telling) or "c/" in lower:
        found += romance_streets.spanish_streets(text, lower)
