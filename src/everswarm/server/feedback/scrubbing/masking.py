"""Replaces what a scrubber found by numbered placeholders, the same number for the same value within one record."""

from __future__ import annotations

import re

from everswarm.server.feedback.scrubbing.folding import folded
from everswarm.server.feedback.scrubbing.found import KINDS, Found, Kind, Scrubber

PLACEHOLDER = re.compile(r"\[(" + "|".join(kind.upper() for kind in KINDS) + r")_(\d{1,6})\]")
_NOT_DIGITS = re.compile(r"\D+")
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_MOST_ROUNDS = 16


class Masker:
    """Masks the texts of one record."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._numbers: dict[tuple[Kind, str], int] = {}
        self._highest: dict[Kind, int] = {}
        self.counts: dict[Kind, int] = {}  # replacements, not distinct values

    def mask(self, text: str) -> str:
        """Return `text` with each value replaced; text that was masked before comes back as it is."""
        for _ in range(_MOST_ROUNDS):
            # What is left beside a placeholder may be a value of its own, so look until nothing is found.
            found = _outside_placeholders(text, self._scrubber.find(text))
            if not found:
                break
            text = self._replaced(text, found)
        return text

    def _replaced(self, text: str, found: list[Found]) -> str:
        for match in PLACEHOLDER.finditer(text):
            kind = next(kind for kind in KINDS if kind.upper() == match[1])
            self._highest[kind] = max(self._highest.get(kind, 0), int(match[2]))
        parts: list[str] = []
        end = 0
        for one in found:
            parts += (text[end : one.start], self._placeholder(text[one.start : one.end], one.kind))
            end = one.end
        return "".join([*parts, text[end:]])

    def _placeholder(self, value: str, kind: Kind) -> str:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        key = (kind, normalised(value, kind))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._highest[kind] = self._highest.get(kind, 0) + 1
        return f"[{kind.upper()}_{number}]"


def normalised(value: str, kind: Kind) -> str:
    """Return the form in which two spellings of one value are equal."""
    plain = folded(value).text
    if kind in ("phone", "card"):
        return _NOT_DIGITS.sub("", plain)
    if kind in ("iban", "address"):
        return _NOT_ALPHANUMERIC.sub("", plain).casefold()
    return plain if kind in ("key", "token") else plain.casefold()


def _outside_placeholders(text: str, found: list[Found]) -> list[Found]:
    """Return `found` without the values that touch a placeholder; what is left beside one is looked at again."""
    if not found or "[" not in text:
        return found
    taken = [match.span() for match in PLACEHOLDER.finditer(text)]
    return [one for one in found if not any(one.start < end and start < one.end for start, end in taken)]
