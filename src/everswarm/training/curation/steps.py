"""The filters, in the order in which `curate` applies them. Each returns what it kept and what it dropped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from everswarm.schemas.dataset import Dropped
from everswarm.schemas.interaction import JudgedInteraction, Message

MAX_CHARACTERS = 8_000  # of all messages together, and of a target
LIKED_RATING = 4  # from here on an answer without a correction is worth learning


class Pair(NamedTuple):
    """A question and what to answer, before it has a split."""

    id: str
    user: str
    timestamp: datetime
    messages: list[Message]
    target: str
    source: Literal["correction", "answer"]


class Kept(NamedTuple):
    """Outcome of a step on pairs."""

    pairs: list[Pair]
    dropped: list[Dropped]


def keep_consented(records: Iterable[JudgedInteraction]) -> tuple[list[JudgedInteraction], list[Dropped]]:
    """Keep what its user allows to be trained on."""
    everything = list(records)
    kept = [record for record in everything if record.consent]
    return kept, counted("consent", {"no consent to training": len(everything) - len(kept)})


def choose_targets(records: Sequence[JudgedInteraction]) -> Kept:
    """Take the correction as the target, else an answer rated at least `LIKED_RATING`."""
    pairs = [pair for record in records if (pair := _pair_of(record)) is not None]
    return Kept(pairs, counted("target", {"nothing to learn from": len(records) - len(pairs)}))


def _pair_of(record: JudgedInteraction) -> Pair | None:
    if record.correction is not None and record.correction.strip():
        return _pair(record, record.correction, "correction")
    if record.response is not None and (record.rating or 0) >= LIKED_RATING:
        return _pair(record, record.response, "answer")
    return None


def _pair(record: JudgedInteraction, target: str, source: Literal["correction", "answer"]) -> Pair:
    return Pair(record.id, record.device_id, record.timestamp, record.messages, target.strip(), source)


def keep_right_lengths(pairs: Sequence[Pair]) -> Kept:
    """Drop blank questions and targets, and texts of more than `MAX_CHARACTERS`."""
    kept, reasons = [], Counter[str]()
    for pair in pairs:
        reason = _wrong_length(pair)
        if reason is None:
            kept.append(pair)
        else:
            reasons[reason] += 1
    return Kept(kept, counted("length", reasons))


def _wrong_length(pair: Pair) -> str | None:
    if not pair.messages[-1].content.strip():
        return "blank question"
    if not pair.target:
        return "blank target"
    if sum(len(message.content) for message in pair.messages) > MAX_CHARACTERS:
        return f"conversation over {MAX_CHARACTERS} characters"
    if len(pair.target) > MAX_CHARACTERS:
        return f"target over {MAX_CHARACTERS} characters"
    return None


def drop_exact_duplicates(pairs: Sequence[Pair]) -> Kept:
    """Keep the earliest of the pairs that have the same messages and the same target."""
    first: dict[tuple[object, ...], Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.timestamp, pair.id)):
        first.setdefault((*((message.role, message.content) for message in pair.messages), pair.target), pair)
    return Kept(list(first.values()), counted("duplicates", {"same conversation and target": len(pairs) - len(first)}))


def keep_one_a_question(pairs: Sequence[Pair]) -> Kept:
    """Keep one pair a question: a correction before a liked answer, then the earliest, then the lowest id."""
    first: dict[tuple[object, ...], Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.source != "correction", pair.timestamp, pair.id)):
        first.setdefault(question_of(pair.messages), pair)
    return Kept(list(first.values()), counted("questions", {"question already kept": len(pairs) - len(first)}))


def question_of(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """Return the conversation without regard to case and white space: what makes two questions the same."""
    return tuple((message.role, " ".join(message.content.casefold().split())) for message in messages)


def counted(step: str, reasons: dict[str, int] | Counter[str]) -> list[Dropped]:
    """Return what `step` dropped, without the reasons that never occurred."""
    return [Dropped(step=step, reason=reason, count=count) for reason, count in sorted(reasons.items()) if count]
