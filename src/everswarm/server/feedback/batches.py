"""Records that carry their own ids: what devices upload and what files hold. Each is stored once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row

from everswarm.errors import BadRequestError, ForbiddenError
from everswarm.identifiers import new_id
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import RejectedInteraction, TrainingFeedback, TrainingFeedbackAccepted
from everswarm.server.auth import Principal
from everswarm.server.database import Database
from everswarm.server.feedback import repository
from everswarm.server.feedback.drafting import (
    Incoming,
    Source,
    Submission,
    draft,
    feedback_row,
    interaction_row,
)
from everswarm.server.feedback.reading import printable, read_judged_interaction
from everswarm.server.feedback.senders import Claims
from everswarm.server.feedback.storing import Outcome, is_same_interaction, store_together

__all__ = [
    "BatchResult",
    "Upload",
    "accept_training_feedback",
    "add_better_answer",
    "is_same_interaction",
    "store_batch",
    "store_escalated",
    "withdraw_consent",
]

CONFLICT = "is known with another content, which is kept; an id names one interaction for ever"
REFUSED = "was erased, and does not come back"


class BatchResult(NamedTuple):
    """What became of a batch of valid records."""

    stored: int
    duplicates: int  # known already, and the same
    conflicts: list[str]  # ids that are known with another content, which is kept
    refused: list[str]  # ids that were erased


def store_batch(
    database: Database,
    records: Iterable[JudgedInteraction],
    *,
    source: Source,
    sender: str | None = None,
) -> BatchResult:
    """Store records that carry their own ids, in one transaction. What is there already stays as it is."""
    items = [Incoming(record, record.device_id, record.timestamp) for record in records]
    outcome = _store(database, Submission(items, source=source, sender=sender))

    def ids(positions: Sequence[int]) -> list[str]:
        return [items[position].record.id for position in positions]

    return BatchResult(outcome.stored, outcome.duplicates, ids(outcome.conflicts), ids(outcome.refused))


def accept_training_feedback(
    database: Database, principal: Principal, batch: TrainingFeedback
) -> TrainingFeedbackAccepted:
    """Store what a device sends; the items that cannot be used are named and do not hold up the rest.

    Raises:
        ForbiddenError: a device key has sent for another device before, or the device is of another key.
    """
    upload = upload_of(batch, others_allowed=principal.scope is Scope.ADMIN)
    return upload.answer(_store(database, upload.submission(principal)))


class Upload(NamedTuple):
    """A batch of a device, read."""

    device_id: str
    data_id: str
    items: list[Incoming]
    positions: Sequence[int]  # of the items, in the batch
    rejected: list[RejectedInteraction]
    size_bytes: int = 0  # of its body, unpacked

    def submission(self, principal: Principal) -> Submission:
        """Return it as `principal` may have it stored."""
        return Submission(
            self.items,
            source="device",
            sender=principal.user,
            sender_label=principal.label,
            only_device=None if principal.scope is Scope.ADMIN else self.device_id,
            size_bytes=self.size_bytes,
        )

    def answer(self, outcome: Outcome) -> TrainingFeedbackAccepted:
        """Return what the device is told."""
        refused = self._named(outcome.refused, REFUSED)
        return TrainingFeedbackAccepted(
            data_id=self.data_id,
            stored=outcome.stored,
            duplicates=outcome.duplicates,
            conflicts=self._named(outcome.conflicts, CONFLICT),
            rejected=sorted([*self.rejected, *refused], key=lambda one: one.index),
        )

    def _named(self, positions: Sequence[int], why: str) -> list[RejectedInteraction]:
        found = [(self.positions[position], self.items[position].record.id) for position in positions]
        return [RejectedInteraction(index=index, id=id_, error=f"id: {id_!r} {why}") for index, id_ in found]


def upload_of(batch: TrainingFeedback, *, others_allowed: bool) -> Upload:
    """Read the items of a batch one by one, so that each bad one is named."""
    items: list[Incoming] = []
    positions: list[int] = []
    rejected: list[RejectedInteraction] = []
    for index, item in enumerate(batch.interactions):
        try:
            record = _item_of(batch, item, others_allowed=others_allowed)
        except BadRequestError as error:
            item_id = item.get("id")
            shown = printable(item_id) if isinstance(item_id, str) else None
            rejected.append(RejectedInteraction(index=index, id=shown, error=str(error)))
        else:
            items.append(Incoming(record, record.device_id, record.timestamp))
            positions.append(index)
    ids = [item.get("id") for item in batch.interactions]
    return Upload(batch.device_id, data_id(batch.device_id, ids), items, positions, rejected)


def _item_of(batch: TrainingFeedback, item: Mapping[str, Any], *, others_allowed: bool) -> JudgedInteraction:
    record = read_judged_interaction({"device_id": batch.device_id, "timestamp": batch.timestamp, **item})
    if record.device_id != batch.device_id and not others_allowed:
        raise BadRequestError(
            f"device_id: is {record.device_id!r}, and the batch is of {batch.device_id!r}; a device sends its own only"
        )
    return record


def data_id(device_id: str, ids: Sequence[Any]) -> str:
    """Name a batch by what is in it, so that sending it again gives the same name."""
    return hashlib.sha256(json.dumps([device_id, ids], default=str).encode()).hexdigest()[:32]


def _store(database: Database, submission: Submission) -> Outcome:
    drafts = draft(submission, database.seal)
    with database.transaction() as connection:
        (outcome,) = store_together(connection, [(submission, drafts)], claims=Claims())
        if isinstance(outcome, ForbiddenError):
            raise outcome
        return outcome


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
    row = interaction_row(record, user=record.device_id, at=record.timestamp)
    if not repository.insert_interactions(connection, [row | {"sender": sender, "escalated_to": answer_id}]):
        return repository.find_interaction(connection, record.id)
    add_better_answer(connection, record)
    return None


def add_better_answer(connection: Connection, record: JudgedInteraction) -> None:
    """Store the swarm's correction of a device's interaction that is there; nothing where it has none."""
    if record.correction is not None:
        repository.insert_feedback(connection, [_judgement_of(record) | {"author": repository.SWARM}])


def withdraw_consent(connection: Connection, record: JudgedInteraction) -> None:
    """Store that who asked wants `record` no longer used, where they had consented."""
    if repository.latest_consent(connection, record.id):
        repository.insert_feedback(connection, [_judgement_of(record) | {"correction": None, "consent": False}])


def _judgement_of(record: JudgedInteraction) -> dict[str, Any]:
    """Return a judgement beside the one that may come with the record."""
    at = min(record.timestamp, datetime.now(UTC))
    return feedback_row(record, user=record.device_id, at=at) | {"id": new_id()}
