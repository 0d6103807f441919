"""A plain twin of a text: ASCII digits, spaces and hyphens, no invisible marks; with the way back to the original."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from typing import NamedTuple

_INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff"
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_HYPHENS = "\u2010-\u2015\u2212\ufe58\ufe63"
_DIGITS = "\u0660-\u0669\u06f0-\u06f9\u07c0-\u07c9\u0966-\u096f\u09e6-\u09ef\u0e50-\u0e59\U0001d7ce-\U0001d7ff"
_FULL_WIDTH = "\uff01-\uff5e\ufe52\ufe6b"
_ODD = re.compile(f"[{_INVISIBLE}{_SPACES}{_HYPHENS}{_DIGITS}{_FULL_WIDTH}\u2028\u2029]")
_DROPPED = re.compile(f"[{_INVISIBLE}]")
_SPACE = re.compile(f"[{_SPACES}]")
_HYPHEN = re.compile(f"[{_HYPHENS}]")


class Folded(NamedTuple):
    """The plain twin, and at which of its positions characters of the original were left out."""

    text: str
    dropped: list[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return where `text[start:end]` lies in the original, in characters."""
        if not self.dropped:
            return start, end
        return start + bisect_right(self.dropped, start), end + bisect_right(self.dropped, end - 1)


def folded(text: str) -> Folded:
    """Return the plain twin of `text`; ordinary text is returned as it is."""
    if text.isascii() or _ODD.search(text) is None:
        return Folded(text, [])
    parts: list[str] = []
    dropped: list[int] = []
    end, length = 0, 0
    for match in _ODD.finditer(text):
        plain = _plain(match.group())
        parts += (text[end : match.start()], plain)
        length += match.start() - end
        if not plain:
            dropped.append(length)
        length += len(plain)
        end = match.end()
    parts.append(text[end:])
    return Folded("".join(parts), dropped)


def small_letters(text: str) -> str:
    """Return `text` in small letters and of the same length, so that a place in the one is a place in the other."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(character.lower() if len(character.lower()) == 1 else character for character in text)


def _plain(character: str) -> str:
    if _DROPPED.match(character):
        return ""
    if _SPACE.match(character):
        return " "
    if _HYPHEN.match(character):
        return "-"
    if character in "\u2028\u2029":
        return "\n"
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return unicodedata.normalize("NFKC", character)[0]
