"""What a scrubber finds, and how findings that overlap become one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol, get_args

Kind = Literal["email", "phone", "card", "iban", "ip", "key", "token", "address"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Where two findings of the same length overlap, the kind with a check digit or a fixed form is the surer one.
_SUREST_FIRST: tuple[Kind, ...] = ("iban", "card", "key", "token", "email", "ip", "address", "phone")
_RANK = {kind: rank for rank, kind in enumerate(_SUREST_FIRST)}


class Found(NamedTuple):
    """One value: `text[start:end]` in characters, and its kind."""

    start: int
    end: int
    kind: Kind


class Scrubber(Protocol):
    """Finds personal data in a text."""

    def find(self, text: str) -> list[Found]:
        """Return what is in `text`, in order, without overlaps."""


def united(found: Iterable[Found]) -> list[Found]:
    """Return `found` in order with overlaps joined: all characters stay covered, the longer finding gives the kind."""
    result: list[Found] = []
    winner: Found | None = None
    for candidate in sorted(found):
        if winner is None or candidate.start >= result[-1].end:
            result.append(candidate)
            winner = candidate
            continue
        winner = min(winner, candidate, key=lambda one: (one.start - one.end, _RANK[one.kind]))
        result[-1] = Found(result[-1].start, max(result[-1].end, candidate.end), winner.kind)
    return result
