"""Many batches in one transaction. Each id is stored once; what comes second is compared.

Knows nothing of HTTP and of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Row

from everswarm.errors import ForbiddenError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.database import take_turns
from everswarm.server.feedback import repository
from everswarm.server.feedback.drafting import (
    FEEDBACK_COLUMNS,
    INTERACTION_COLUMNS,
    Draft,
    Mask,
    Submission,
    feedback_values,
    interaction_row,
    is_judged,
)
from everswarm.server.feedback.tables import feedback, interactions
from everswarm.server.rows import PreparedInsert

__all__ = ["Mask", "Outcome", "is_same_interaction", "store_together"]

ROWS_TOGETHER = 256  # in one statement; a power of two
_RARE = {  # what these columns hold mostly, and by themselves
    **dict.fromkeys(("liked", "preferred_over", "better_than", "judge_score")),
    "regenerated": False,
    "copied": False,
    "author": repository.PERSON,
}
_COMMON_COLUMNS = tuple(name for name in FEEDBACK_COLUMNS if name not in _RARE)
_RARE_OF = itemgetter(*(FEEDBACK_COLUMNS.index(name) for name in FEEDBACK_COLUMNS if name in _RARE))
_COMMON_OF = itemgetter(*(FEEDBACK_COLUMNS.index(name) for name in _COMMON_COLUMNS))
_NOTHING_RARE = tuple(_RARE[name] for name in FEEDBACK_COLUMNS if name in _RARE)


class Outcome(NamedTuple):
    """What became of a submission: how many, and the positions of those that are not simply stored."""

    stored: int
    duplicates: int = 0
    conflicts: tuple[int, ...] = ()  # the id is known with another content, which is kept
    refused: tuple[int, ...] = ()  # erased before


def store_together(
    connection: Connection,
    drafted: Sequence[tuple[Submission, Sequence[Draft]]],
    *,
    devices: MutableMapping[str, str],
) -> list[Outcome | ForbiddenError]:
    """Store all submissions that may be stored; return what became of each. One that is refused leaves no trace.

    Args:
        connection: of the transaction.
        drafted: the submissions with their rows.
        devices: of which device a sender is known to send; what is learnt here is added, and true after the commit.
    """
    refusals = _refusals(connection, [submission for submission, _ in drafted], devices)
    admitted = [drafts for (_, drafts), refusal in zip(drafted, refusals, strict=True) if refusal is None]
    first: dict[str, Draft] = {}
    for drafts in admitted:
        for one in drafts:
            first.setdefault(one.record.id, one)
    erased = repository.erased_among(connection, list(first)) if first else set()
    for record_id in erased:
        del first[record_id]
    known = _insert(connection, list(first.values()))
    outcomes: list[Outcome | ForbiddenError] = []
    judgements = [one.judgement for id_, one in first.items() if one.judgement is not None and id_ not in known]
    for (submission, drafts), refusal in zip(drafted, refusals, strict=True):
        if refusal is not None:
            outcomes.append(refusal)
            continue
        outcomes.append(_compare(drafts, first=first, known=known, erased=erased))
        if known:
            judgements += _on_escalated(connection, submission, drafts, known)
    _insert_judgements(connection, judgements)
    return outcomes


def _compare(
    drafts: Sequence[Draft],
    *,
    first: Mapping[str, Draft],
    known: Mapping[str, repository.KnownInteraction],
    erased: set[str],
) -> Outcome:
    """Say what becomes of the records of one submission."""
    duplicates, conflicts, refused = 0, [], []
    for position, one in enumerate(drafts):
        record_id = one.record.id
        if record_id in erased:
            refused.append(position)
        elif record_id in known:
            held = known[record_id]
            if held.is_escalated or held.fingerprint in (None, one.fingerprint):
                duplicates += 1
            else:
                conflicts.append(position)
        elif first[record_id] is one:
            continue
        elif first[record_id].fingerprint == one.fingerprint:
            duplicates += 1
        else:
            conflicts.append(position)
    stored = len(drafts) - duplicates - len(conflicts) - len(refused)
    return Outcome(stored, duplicates, tuple(conflicts), tuple(refused))


def _refusals(
    connection: Connection, submissions: Sequence[Submission], devices: MutableMapping[str, str]
) -> list[ForbiddenError | None]:
    """Return why a submission must not be stored: a key of a device has sent for another one before."""
    # in one order, else two servers could wait for each other
    for sender in sorted({one.sender for one in submissions if one.only_device is not None and one.sender is not None}):
        take_turns(connection, "sender", sender)
    claimed: dict[str, str] = {}
    refusals: list[ForbiddenError | None] = []
    for one in submissions:
        refusals.append(_refusal(connection, one, claimed, devices))
        if refusals[-1] is None and one.items and one.sender and one.only_device:
            claimed[one.sender] = one.only_device
    devices.update(claimed)
    return refusals


def _refusal(
    connection: Connection, submission: Submission, claimed: Mapping[str, str], devices: Mapping[str, str]
) -> ForbiddenError | None:
    sender, device = submission.sender, submission.only_device
    if sender is None or device is None or device == claimed.get(sender, devices.get(sender)):
        return None
    other = claimed.get(sender) or repository.device_of(connection, sender)
    if other is None or other == device:
        return None
    return ForbiddenError(
        f"The key {submission.sender_label!r} sends for the device {other!r} and cannot send for {device!r}. "
        "Each device needs a key of its own: everswarm keys create --scope device."
    )


def _insert(connection: Connection, drafts: Sequence[Draft]) -> dict[str, repository.KnownInteraction]:
    """Store the interactions whose ids are new; return what is known of the others."""
    ids = [one.record.id for one in drafts]
    if connection.dialect.name != "sqlite":  # others write at the same time: only the insert tells what is new
        rows = [dict(zip(INTERACTION_COLUMNS, one.interaction, strict=True)) for one in drafts]
        stored = repository.insert_interactions(connection, rows)
        return repository.known_among(connection, [id_ for id_ in ids if id_ not in stored])
    known = repository.known_among(connection, ids)
    new = [one.interaction for one in drafts if not known or one.record.id not in known]
    _inserts(connection.dialect)[0].execute_values(connection, new)
    return known


def _insert_judgements(connection: Connection, rows: Sequence[Sequence[Any]]) -> None:
    if connection.dialect.name != "sqlite":
        repository.insert_feedback(connection, [dict(zip(FEEDBACK_COLUMNS, row, strict=True)) for row in rows])
        return
    _, common, whole = _inserts(connection.dialect)
    # the driver takes longer over a None than over a text
    common.execute_values(connection, [_COMMON_OF(row) for row in rows if _RARE_OF(row) == _NOTHING_RARE])
    whole.execute_values(connection, [row for row in rows if _RARE_OF(row) != _NOTHING_RARE])


@lru_cache(maxsize=16)
def _inserts(dialect: Dialect) -> tuple[PreparedInsert, PreparedInsert, PreparedInsert]:
    """Return what inserts interactions, judgements with nothing rare in them, and all others."""
    ending = " ON CONFLICT DO NOTHING"
    return (
        PreparedInsert(interactions, INTERACTION_COLUMNS, dialect, together=ROWS_TOGETHER),
        PreparedInsert(feedback, _COMMON_COLUMNS, dialect, ending=ending, together=ROWS_TOGETHER),
        PreparedInsert(feedback, FEEDBACK_COLUMNS, dialect, ending=ending, together=ROWS_TOGETHER),
    )


def _on_escalated(
    connection: Connection,
    submission: Submission,
    drafts: Iterable[Draft],
    known: Mapping[str, repository.KnownInteraction],
) -> Iterator[tuple[Any, ...]]:
    """Yield the judgements on interactions that are there only because their device asked the swarm again."""
    by_id = {
        one.record.id: one.record
        for one in drafts
        if one.record.id in known
        and known[one.record.id].is_escalated
        and (is_judged(one.record) or "consent" in one.record.model_fields_set)
    }
    if not by_id or submission.sender is None:
        return
    for row in repository.escalated_by(connection, by_id, user=submission.sender):
        if is_same_interaction(row, by_id[row.id]):
            # judged at a time that the record does not tell, and we hear of it now: so it outranks what was said before
            yield feedback_values(by_id[row.id], row.user, datetime.now(UTC))


def is_same_interaction(row: Row[Any], record: JudgedInteraction) -> bool:
    """Say whether a stored interaction is a device's, and holds what `record` holds; either may not name the model."""
    held = interaction_row(record, user=row.user, at=row.created_at)
    same_model = row.model is None or held["model"] in (None, row.model)
    return same_model and all(row._mapping[name] == held[name] for name in ("source", "messages", "response"))
