"""Records that carry their own ids: what devices upload and what files hold. Each is stored once."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Row

from everswarm.errors import BadRequestError, ForbiddenError
from everswarm.identifiers import new_id
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import RejectedInteraction, TrainingFeedback, TrainingFeedbackAccepted
from everswarm.server.auth import Principal
from everswarm.server.database import Database, take_turns
from everswarm.server.feedback import repository
from everswarm.server.feedback.reading import printable, read_judged_interaction, storable

_FEEDBACK_IDS = uuid.UUID("5f0b1a52-6a0e-4c0e-9a39-2f2e6c0c7a11")  # makes the id of a judgement from its interaction's


Source = Literal["device", "import"]


class BatchResult(NamedTuple):
    """What became of a batch of valid records."""

    stored: int
    duplicates: int


def store_batch(
    database: Database, records: Iterable[JudgedInteraction], *, source: Source, sender: str | None = None
) -> BatchResult:
    """Store records that carry their own ids, in one transaction. What is there already stays as it is."""
    with database.transaction() as connection:
        return _store(connection, list(records), source=source, sender=sender)


def accept_training_feedback(
    database: Database, principal: Principal, batch: TrainingFeedback
) -> TrainingFeedbackAccepted:
    """Store what a device sends; the items that cannot be used are named and do not hold up the rest.

    Raises:
        ForbiddenError: a device key has sent for another device before.
    """
    accepted: list[JudgedInteraction] = []
    rejected: list[RejectedInteraction] = []
    for index, item in enumerate(batch.interactions):
        try:
            accepted.append(_item_of(batch, item, others_allowed=principal.scope is Scope.ADMIN))
        except BadRequestError as error:
            item_id = item.get("id")
            shown = printable(item_id) if isinstance(item_id, str) else None
            rejected.append(RejectedInteraction(index=index, id=shown, error=str(error)))
    with database.transaction() as connection:
        if principal.scope is not Scope.ADMIN:
            _check_one_device(connection, principal, batch.device_id)
        result = _store(connection, accepted, source="device", sender=principal.user)
    return TrainingFeedbackAccepted(
        data_id=_data_id(batch), stored=result.stored, duplicates=result.duplicates, rejected=rejected
    )


def _store(
    connection: Connection, records: list[JudgedInteraction], *, source: Source, sender: str | None
) -> BatchResult:
    unique = {record.id: record for record in reversed(records)}  # reversed: the first of each id is kept
    now = datetime.now(UTC)
    rows = [_interaction_row(record, source=source, sender=sender) for record in unique.values()]
    stored = repository.insert_interactions(connection, rows)
    judged = [unique[record_id] for record_id in sorted(stored) if _is_judged(unique[record_id])]
    judgements = [_feedback_row(record, now=now) for record in judged]
    judgements += _on_escalated(connection, [unique[known] for known in unique.keys() - stored], sender=sender, now=now)
    repository.insert_feedback(connection, judgements)
    return BatchResult(stored=len(stored), duplicates=len(records) - len(stored))


def store_escalated(
    connection: Connection, record: JudgedInteraction, *, answer_id: str, sender: str | None
) -> Row[Any] | None:
    """Store what a device asked the swarm again; None, or the row of the interaction that has this id already.

    Args:
        connection: of the transaction.
        record: the device's interaction; its correction is the swarm's answer, where there is something to learn.
        answer_id: the swarm's interaction.
        sender: the device's key, where the device is known by another name.
    """
    row = _interaction_row(record, source="device", sender=sender) | {"escalated_to": answer_id}
    if not repository.insert_interactions(connection, [row]):
        return repository.find_interaction(connection, record.id)
    add_better_answer(connection, record)
    return None


def add_better_answer(connection: Connection, record: JudgedInteraction) -> None:
    """Store the swarm's correction of a device's interaction that is there; nothing where it has none."""
    if record.correction is not None:
        row = _feedback_row(record, now=record.timestamp)
        repository.insert_feedback(connection, [row | {"id": new_id(), "author": repository.SWARM}])


def withdraw_consent(connection: Connection, record: JudgedInteraction) -> None:
    """Store that who asked wants `record` no longer used, where they had consented."""
    if repository.latest_consent(connection, record.id):
        row = _feedback_row(record, now=record.timestamp)
        repository.insert_feedback(connection, [row | {"id": new_id(), "correction": None, "consent": False}])


def is_same_interaction(row: Row[Any], record: JudgedInteraction) -> bool:
    """Say whether a stored interaction is a device's, and holds what `record` holds; either may not name the model."""
    held = _interaction_row(record, source="device", sender=None)
    same_model = row.model is None or held["model"] in (None, row.model)
    return same_model and all(row._mapping[name] == held[name] for name in ("source", "messages", "response"))


def _on_escalated(
    connection: Connection, records: list[JudgedInteraction], *, sender: str | None, now: datetime
) -> list[dict[str, Any]]:
    """Return the judgements on interactions that are there only because their device asked the swarm again."""
    by_id = {record.id: record for record in records if _is_judged(record) or "consent" in record.model_fields_set}
    found = [] if sender is None else repository.escalated_by(connection, by_id, user=sender)
    return [
        # judged at a time that the record does not tell, and we hear of it now: so it outranks what was said before
        _feedback_row(by_id[row.id], now=now) | {"user": row.user, "created_at": now}
        for row in found
        if is_same_interaction(row, by_id[row.id])
    ]


def _check_one_device(connection: Connection, principal: Principal, device_id: str) -> None:
    take_turns(connection, "sender", principal.user)
    other = repository.other_device_of(connection, principal.user, than=device_id)
    if other is not None:
        raise ForbiddenError(
            f"The key {principal.label!r} sends for the device {other!r} and cannot send for {device_id!r}. "
            "Each device needs a key of its own: everswarm keys create --scope device."
        )


def _item_of(batch: TrainingFeedback, item: Mapping[str, Any], *, others_allowed: bool) -> JudgedInteraction:
    record = read_judged_interaction({"device_id": batch.device_id, "timestamp": batch.timestamp, **item})
    if record.device_id != batch.device_id and not others_allowed:
        raise BadRequestError(
            f"device_id: is {record.device_id!r}, and the batch is of {batch.device_id!r}; a device sends its own only"
        )
    return record


def _data_id(batch: TrainingFeedback) -> str:
    """Name the batch by what is in it, so that sending it again gives the same name."""
    named = json.dumps([batch.device_id, [item.get("id") for item in batch.interactions]], default=str)
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def _is_judged(record: JudgedInteraction) -> bool:
    return any(value is not None for value in (record.rating, record.correction, record.comment))


def _interaction_row(record: JudgedInteraction, *, source: str, sender: str | None) -> dict[str, Any]:
    return {
        "id": record.id,
        "user": record.device_id,
        "sender": sender,
        "source": source,
        "created_at": record.timestamp,
        "model": storable(record.model),
        "messages": [message.model_dump() for message in record.messages],
        "response": storable(record.response),
        "state": "complete",
    }


def _feedback_row(record: JudgedInteraction, *, now: datetime) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid5(_FEEDBACK_IDS, record.id)),
        "interaction_id": record.id,
        "user": record.device_id,
        "created_at": min(record.timestamp, now),  # a clock that is ahead must not outrank a later withdrawal
        "rating": record.rating,
        "correction": storable(record.correction),
        "comment": storable(record.comment),
        "preferred_over": None,
        "consent": record.consent,
        "author": repository.PERSON,
    }
