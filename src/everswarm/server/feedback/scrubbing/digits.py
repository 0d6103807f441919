"""Runs of digit groups, such as `030 23125 478`: what cards and phones are looked for in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# A digit with no digit before it, seven digits with small gaps ahead, then groups with one separator between two.
_RUN = re.compile(
    r"[0-9](?<![0-9][0-9])(?=(?:[ ().\-/]{0,3}[0-9]){6})[0-9]{0,19}"
    r"(?:(?: [\-/(] ?|\) ?[\-/]? ?|/ |[ .\-/(])[0-9]{1,19}){0,9}(?![0-9])"
)
_SEVEN = re.compile(r"[0-9](?:[ ().\-/]{0,3}[0-9]){6}")
_SEPARATED = re.compile(r"(?:1[.\-])?[0-9]{3}([.\-])[0-9]{3}\1[0-9]{4}")  # North America: no sum is written so
_GROUP = re.compile(r"[0-9]+")


class Digits(NamedTuple):
    """One run: where it lies, its digits without separators, and its groups."""

    start: int
    end: int
    digits: str
    groups: list[re.Match[str]]

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many digits each group has."""
        return tuple(group.end() - group.start() for group in self.groups)


def has_digit_run(text: str) -> bool:
    """Return whether seven digits stand close to one another anywhere."""
    return _SEVEN.search(text) is not None


def digit_runs(text: str) -> Iterator[Digits]:
    """Yield the runs of `text` with seven digits or more that are no part of a decimal number or a word."""
    for match in _RUN.finditer(text):
        start, end = match.span()
        before, after = text[start - 1 : start], text[end : end + 2]
        column = _SEPARATED.fullmatch(match.group()) is not None  # of a CSV line, whatever the commas touch
        if before.isalpha() or (before in "._" and before != "" and text[start - 2 : start - 1].isalnum()):
            continue
        if before == "," and text[start - 2 : start - 1].isdigit() and not column:
            continue
        if after[:1].isalpha() or after[:1] == "_" or (after[:1] == "," and after[1:].isdigit() and not column):
            continue
        digits = _digits_of(match.group())
        if len(digits) >= 7:
            yield Digits(start, end, digits, list(_GROUP.finditer(text, start, end)))


def _digits_of(run: str) -> str:
    return "".join(filter(str.isdigit, run))


def part(text: str, start: int, end: int) -> Digits:
    """Return the groups within `text[start:end]` as a run of their own."""
    return Digits(start, end, _digits_of(text[start:end]), list(_GROUP.finditer(text, start, end)))
