"""One pass over the numbers of a text, which tells the costlier searches whether and where to look."""

from __future__ import annotations

import re
from typing import NamedTuple

from everswarm.server.feedback.scrubbing.germanic_streets import STREET_ENDS

_ENDS = sorted({end[-3:] for end in STREET_ENDS})
_LAST = re.escape("".join(sorted({end[-1] for end in _ENDS})))
# A digit with six digits or gaps behind it; or a postcode and the first letter of its town; or a number behind the
# last letters of a German street.
_PLACE = re.compile(
    r"[0-9](?:(?=[0-9 ().\-/]{6})(?P<near>)|[0-9]{3,4} [A-ZÄÖÜ]"
    rf"|(?<=[{_LAST}][ .][0-9])(?<=(?:{'|'.join(map(re.escape, _ENDS))})[ .][0-9]))"
)


class NumberPlaces(NamedTuple):
    """What the numbers of a text may belong to."""

    near_digits: bool  # digits as near to one another as in a phone, a card or an IBAN
    town_line: bool  # a postcode of four or five digits before a capital letter
    starts: list[int]  # of numbers that may be house numbers, in characters


def number_places(text: str) -> NumberPlaces:
    """Return what the numbers of `text` may belong to."""
    near = town = False
    starts: list[int] = []
    for match in _PLACE.finditer(text):
        start, end = match.span()
        near = near or match.lastgroup is not None
        town = town or end - start > 1
        starts.append(start)
    return NumberPlaces(near, town, starts)
