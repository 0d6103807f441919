"""Records that carry their own ids: what devices upload and what files hold. Each is stored once."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection

from everswarm.errors import BadRequestError, ForbiddenError
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
    repository.insert_feedback(connection, [_feedback_row(record, now=now) for record in judged])
    return BatchResult(stored=len(stored), duplicates=len(records) - len(stored))


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
    }
