"""Many batches in one transaction. Each id is stored once; what comes second is compared.

Knows nothing of HTTP and of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Row

from everswarm.errors import ForbiddenError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.database import share_turn
from everswarm.server.feedback import repository
from everswarm.server.feedback.drafting import (
    FEEDBACK_COLUMNS,
    INTERACTION_COLUMNS,
    Draft,
    Submission,
    feedback_values,
    interaction_row,
    is_judged,
)
from everswarm.server.feedback.senders import Claims, refusals
from everswarm.server.feedback.tables import feedback, interactions
from everswarm.server.rows import PreparedInsert
from everswarm.server.sealing import as_stored

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
    claims: Claims,
) -> list[Outcome | ForbiddenError]:
    """Store all submissions that may be stored; return what became of each. One that is refused leaves no trace.

    Args:
        connection: of the transaction.
        drafted: the submissions with their rows.
        claims: who is known to send for which device; what is learnt here is added, and true after the commit.
    """
    refused = refusals(connection, [submission for submission, _ in drafted], claims)
    admitted = [drafts for (_, drafts), refusal in zip(drafted, refused, strict=True) if refusal is None]
    first: dict[str, Draft] = {}
    for drafts in admitted:
        for one in drafts:
            first.setdefault(one.record.id, one)
    share_turn(connection, "erasures")  # what is erased after this look finds what is stored here
    erased = repository.erased_among(connection, list(first)) if first else set()
    for record_id in erased:
        del first[record_id]
    known = _insert(connection, list(first.values()))
    outcomes: list[Outcome | ForbiddenError] = []
    judgements = [one.judgement for id_, one in first.items() if one.judgement is not None and id_ not in known]
    for (submission, drafts), refusal in zip(drafted, refused, strict=True):
        if refusal is not None:
            outcomes.append(refusal)
            continue
        same = _same_by_text(connection, submission, drafts, known) if known else {}
        outcomes.append(_compare(drafts, first=first, known=known, erased=erased, same=same))
        if submission.sender is not None:
            judgements += _on_escalated(drafts, same)
    _insert_judgements(connection, judgements)
    return outcomes


def _compare(
    drafts: Sequence[Draft],
    *,
    first: Mapping[str, Draft],
    known: Mapping[str, repository.KnownInteraction],
    erased: set[str],
    same: Mapping[int, Row[Any]],
) -> Outcome:
    """Say what becomes of the records of one submission."""
    duplicates, conflicts, refused = 0, [], []
    for position, one in enumerate(drafts):
        record_id = one.record.id
        if record_id in erased:
            refused.append(position)
        elif record_id in known:
            if position in same or known[record_id].fingerprint == one.fingerprint:
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


def _same_by_text(
    connection: Connection,
    submission: Submission,
    drafts: Sequence[Draft],
    known: Mapping[str, repository.KnownInteraction],
) -> dict[int, Row[Any]]:
    """Return the sender's interactions that say what a record says, by its position, where no fingerprint tells it.

    That is those that were asked here, and those that their device asked the swarm again.
    """
    asked = {
        position: one.record
        for position, one in enumerate(drafts)
        if (held := known.get(one.record.id)) is not None and (held.is_escalated or held.fingerprint is None)
    }
    ids = {record.id for record in asked.values()}
    rows = {row.id: row for row in repository.held_among(connection, ids, user=submission.sender)} if ids else {}
    return {
        position: rows[record.id]
        for position, record in asked.items()
        if record.id in rows and _says_the_same(connection, rows[record.id], record)
    }


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


def _on_escalated(drafts: Sequence[Draft], same: Mapping[int, Row[Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the judgements on interactions that are there only because their device asked the swarm again."""
    for position, row in same.items():
        record = drafts[position].record
        if row.escalated_to is not None and (is_judged(record) or "consent" in record.model_fields_set):
            # judged at a time that the record does not tell, and we hear of it now: so it outranks what was said before
            yield feedback_values(record, row.user, datetime.now(UTC))


def is_same_interaction(connection: Connection, row: Row[Any], record: JudgedInteraction) -> bool:
    """Say whether a stored interaction is a device's, and holds what `record` holds; either may not name the model."""
    return row.source == "device" and _says_the_same(connection, row, record)


def _says_the_same(connection: Connection, row: Row[Any], record: JudgedInteraction) -> bool:
    said = interaction_row(record, user=row.user, at=row.created_at)
    if row.model is not None and said["model"] not in (None, row.model):
        return False
    messages, response = (as_stored(connection.dialect, said[name]) for name in ("messages", "response"))
    return bool(row.messages == messages and (row.response or "") == (response or ""))  # no answer is an empty one
