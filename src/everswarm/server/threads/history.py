"""What a conversation has so far."""

from __future__ import annotations

from typing import NamedTuple


class Turn(NamedTuple):
    """What one side said; `position` is its place in the thread, from 1."""

    position: int
    role: str  # user, assistant
    content: str


class History(NamedTuple):
    """A thread before the next question."""

    thread_id: str
    title: str | None
    turns: list[Turn]  # all, in order
    summary: str | None  # of the turns up to `summary_upto`
    summary_upto: int
    is_new: bool = False  # not stored yet
