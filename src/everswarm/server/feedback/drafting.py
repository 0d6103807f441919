"""From records to rows, without a look at the database: what a record says, and the values that are stored of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import orjson

from everswarm.schemas.interaction import JudgedInteraction, Message
from everswarm.server.feedback.reading import storable
from everswarm.server.feedback.repository import PERSON
from everswarm.server.sealing import Seal

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)  # a device's clock that says less was never set
CLOCK_AHEAD = timedelta(days=1)  # more than any time zone explains
JUDGEMENT_ID_CHARACTERS = 36  # a record whose id is no longer gives it to its judgement

Source = Literal["device", "import"]

INTERACTION_COLUMNS = (
    *("id", "user", "sender", "source", "created_at", "model", "language", "messages", "response", "state"),
    *("expires_at", "fingerprint"),
)
FEEDBACK_COLUMNS = (
    *("interaction_id", "id", "user", "created_at", "rating", "liked", "correction", "comment", "preferred_over"),
    *("better_than", "regenerated", "copied", "judge_score", "consent", "author"),
)
_CONTENT = itemgetter(
    *("response", "model", "language", "rating", "correction", "comment", "liked", "better_than", "regenerated"),
    *("copied", "judge_score", "consent", "keep_days"),
)
_JUDGEMENTS = itemgetter(
    *("rating", "correction", "comment", "liked", "judge_score", "better_than", "regenerated", "copied")
)


class Incoming(NamedTuple):
    """One record, with what its batch says where it says nothing."""

    record: JudgedInteraction
    user: str
    at: datetime


@dataclass(slots=True)
class Submission:
    """What somebody wants stored, and the outcome that they wait for."""

    items: Sequence[Incoming]
    source: Source
    sender: str | None = None  # `Principal.user` of the key that brought it
    sender_label: str = ""
    only_device: str | None = None  # the sender may send for this one, if it has not sent for another before
    size_bytes: int = 0  # of the body that it came in, unpacked


class Draft(NamedTuple):
    """The rows of one record, their values in the order of the columns above."""

    record: JudgedInteraction
    fingerprint: bytes
    interaction: tuple[Any, ...]
    judgement: tuple[Any, ...] | None


def draft(submission: Submission, seal: Seal) -> list[Draft]:
    """Return the rows of a submission, without looking at the database."""
    now = datetime.now(UTC)
    latest = now + CLOCK_AHEAD
    sender, source = submission.sender, submission.source
    drafts = []
    for record, user, said_at in submission.items:
        at = said_at if source == "import" or EARLIEST <= said_at <= latest else now
        fingerprint = seal.fingerprint(_content_of(record, user))
        interaction = _interaction_values(record, user, sender, source, at, fingerprint)
        judgement = feedback_values(record, user, min(at, now)) if is_judged(record) else None
        drafts.append(Draft(record, fingerprint, interaction, judgement))
    return drafts


def _content_of(record: JudgedInteraction, user: str) -> bytes:
    """Return what a record says, in one form; not when: a clock that was set between two sends changes nothing.

    A field that the format gets later may be in here only where it says something, or records that were stored before
    and are sent again would seem to be others.
    """
    said = vars(record)
    return orjson.dumps((user, [vars(turn) for turn in said["messages"]], *_CONTENT(said)))


def is_judged(record: JudgedInteraction) -> bool:
    """Say whether a record has a judgement, be it a weak one."""
    rating, correction, comment, liked, judge_score, *weak = _JUDGEMENTS(vars(record))
    said = rating is not None or correction is not None or comment is not None or liked is not None
    return said or judge_score is not None or any(weak)


def interaction_row(record: JudgedInteraction, *, user: str, at: datetime) -> dict[str, Any]:
    """Return the interaction of a device's record, as if it had come through nobody's hands."""
    return dict(zip(INTERACTION_COLUMNS, _interaction_values(record, user, None, "device", at, None), strict=True))


def feedback_row(record: JudgedInteraction, *, user: str, at: datetime) -> dict[str, Any]:
    """Return the judgements of a record, made at `at`: never ahead of our clock, or it outranked a withdrawal."""
    return dict(zip(FEEDBACK_COLUMNS, feedback_values(record, user, at), strict=True))


def _interaction_values(
    record: JudgedInteraction, user: str, sender: str | None, source: Source, at: datetime, fingerprint: bytes | None
) -> tuple[Any, ...]:
    said = vars(record)  # a field of a model costs four times as much
    model, response, keep_days = said["model"], said["response"], said["keep_days"]
    return (
        said["id"],
        user,
        sender,
        source,
        at,
        model and storable(model),
        said["language"],
        [_turn(turn) for turn in said["messages"]],
        response and storable(response),
        "complete",
        None if keep_days is None else _days_after(at, keep_days),
        fingerprint,
    )


def _turn(turn: Message) -> dict[str, str]:
    said = vars(turn)
    return said if "\x00" not in said["content"] else {**said, "content": said["content"].replace("\x00", "")}


def feedback_values(record: JudgedInteraction, user: str, at: datetime) -> tuple[Any, ...]:
    """Return the values of `FEEDBACK_COLUMNS`, in their order."""
    said = vars(record)
    record_id, correction, comment, better_than = said["id"], said["correction"], said["comment"], said["better_than"]
    return (
        record_id,
        record_id if len(record_id) <= JUDGEMENT_ID_CHARACTERS else _judgement_id(record_id),
        user,
        at,
        said["rating"],
        said["liked"],
        correction and storable(correction),
        comment and storable(comment),
        None,
        [storable(text) for text in better_than] if better_than else None,
        said["regenerated"],
        said["copied"],
        said["judge_score"],
        said["consent"],
        PERSON,
    )


def _days_after(moment: datetime, days: int) -> datetime:
    try:
        return moment + timedelta(days=days)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _judgement_id(record_id: str) -> str:
    """Return the id of the judgement of a record whose own does not fit: always the same, and no record can have it."""
    return f"~{hashlib.sha256(record_id.encode()).hexdigest()[: JUDGEMENT_ID_CHARACTERS - 1]}"
