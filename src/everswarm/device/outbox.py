"""Feedback that waits for a line. Each judgement is sent once; what the server turns down is kept with its reason."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from everswarm.client.api import EverswarmClient
from everswarm.device.journal import Interaction, now, open_journal, recall
from everswarm.errors import BadRequestError, ConflictError, EverswarmError, TooLargeError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.sync import MAX_INTERACTIONS_A_BATCH, TrainingFeedback

MAX_BATCH_BYTES = 1_000_000  # half of what a server takes in one request by default


class OutboxCounts(NamedTuple):
    """How many judgements are in which state."""

    queued: int  # wait for the next sync
    sent: int
    rejected: int


class Sent(NamedTuple):
    """What one emptying of the outbox did."""

    sent: int  # the server has them now, or had them before
    rejected: int


class Rejected(NamedTuple):
    """A judgement that the server turned down."""

    interaction_id: str
    reason: str


def judge(
    journal: Path,
    device_id: str,
    *,
    interaction_id: str | None = None,
    rating: int | None = None,
    correction: str | None = None,
    comment: str | None = None,
    consent: bool | None = None,
) -> JudgedInteraction:
    """Queue a judgement on the last answer, or on `interaction_id`; a second one before a sync adds to the first.

    Raises:
        BadRequestError: it says nothing, or a value is out of its range.
        NotFoundError: the device does not remember the interaction.
        ConflictError: the judgement on it was sent already.
    """
    said = {"rating": rating, "correction": correction, "comment": comment, "consent": consent}
    given = {name: value for name, value in said.items() if value is not None}
    if not given:
        raise BadRequestError(
            "Nothing to keep. Give at least one of: --rating 1 to 5, --correction, --comment, --consent."
        )
    with open_journal(journal) as connection:
        interaction = recall(connection, interaction_id)
        earlier = escalated_consent(connection, interaction.id) | _queued(connection, interaction.id)
        judged = _judged(interaction, device_id, {**earlier, **given})
        connection.execute(
            "INSERT OR REPLACE INTO feedback (interaction_id, state, payload, changed_at) VALUES (?, 'queued', ?, ?)",
            (judged.id, judged.model_dump_json(exclude_none=True), now().isoformat()),
        )
    return judged


def _judged(interaction: Interaction, device_id: str, said: dict[str, Any]) -> JudgedInteraction:
    try:
        return JudgedInteraction(
            id=interaction.id,
            device_id=device_id,
            timestamp=interaction.created_at,
            messages=interaction.messages,
            response=interaction.response,
            model=interaction.model,
            **said,
        )
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise BadRequestError(f"The judgement cannot be kept. {'; '.join(lines)}.") from error


def _queued(connection: sqlite3.Connection, interaction_id: str) -> dict[str, Any]:
    """Return what an earlier judgement said that still waits, or was turned down and may be mended."""
    row = connection.execute(
        "SELECT state, payload, changed_at FROM feedback WHERE interaction_id = ?", (interaction_id,)
    ).fetchone()
    if row is None:
        return {}
    state, payload, changed_at = row
    if state in ("sent", "sending"):
        raise ConflictError(
            f"The judgement on {interaction_id} went out at {changed_at[:19]} UTC, and each counts once. "
            "Ask again and judge the new answer."
        )
    earlier: dict[str, Any] = json.loads(payload)
    return {name: earlier[name] for name in ("rating", "correction", "comment", "consent") if name in earlier}


def escalated_consent(connection: sqlite3.Connection, interaction_id: str) -> dict[str, bool]:
    """Return what was said of the use of an interaction when the server was asked again; nothing if it never was."""
    row = connection.execute("SELECT consent FROM escalations WHERE interaction_id = ?", (interaction_id,)).fetchone()
    return {} if row is None else {"consent": bool(row[0])}


def queued_consent(connection: sqlite3.Connection, interaction_id: str) -> bool:
    """Say whether a judgement that waits lets its interaction be used for training."""
    found = "SELECT payload FROM feedback WHERE interaction_id = ? AND payload IS NOT NULL"
    row = connection.execute(found, (interaction_id,)).fetchone()
    return row is not None and bool(json.loads(row[0]).get("consent"))


def set_queued_consent(connection: sqlite3.Connection, interaction_id: str, *, consent: bool) -> None:
    """Let the judgement that waits say the same as what was said now, since it reaches the server later."""
    connection.execute(
        "UPDATE feedback SET payload = json_set(payload, '$.consent', json(?)) "
        "WHERE interaction_id = ? AND payload IS NOT NULL",
        (json.dumps(consent), interaction_id),
    )


def count(journal: Path) -> OutboxCounts:
    """Count the judgements by state."""
    with open_journal(journal) as connection:
        found = dict(connection.execute("SELECT state, count(*) FROM feedback GROUP BY state").fetchall())
    waiting = found.get("queued", 0) + found.get("sending", 0)
    return OutboxCounts(queued=waiting, sent=found.get("sent", 0), rejected=found.get("rejected", 0))


def rejections(journal: Path) -> list[Rejected]:
    """Return what the server turned down, and why."""
    with open_journal(journal) as connection:
        rows = connection.execute("SELECT interaction_id, reason FROM feedback WHERE state = 'rejected' ORDER BY 1")
        return [Rejected(*row) for row in rows.fetchall()]


def send(journal: Path, device_id: str, *, client: EverswarmClient) -> Sent:
    """Send what waits, in batches.

    The server knows each interaction by its id, so a batch whose answer was lost may be sent again.

    Raises:
        EverswarmError: the server is gone or refuses the key; what was not accepted stays in the queue.
    """
    sent = rejected = 0
    while waiting := _claim(journal):
        for batch in _batches(waiting):
            reasons = _send_batch(client, device_id, batch)
            _settle(journal, [interaction_id for interaction_id, _ in batch], reasons)
            sent += len(batch) - len(reasons)
            rejected += len(reasons)
    return Sent(sent=sent, rejected=rejected)


def _claim(journal: Path) -> list[tuple[str, str]]:
    """Take the next judgements (id, JSON); from here on they no longer change."""
    with open_journal(journal) as connection:
        rows = connection.execute(
            "SELECT interaction_id, payload FROM feedback WHERE state IN ('queued', 'sending') ORDER BY 1 LIMIT ?",
            (MAX_INTERACTIONS_A_BATCH,),
        ).fetchall()
        connection.executemany(
            "UPDATE feedback SET state = 'sending', changed_at = ? WHERE interaction_id = ?",
            [(now().isoformat(), interaction_id) for interaction_id, _ in rows],
        )
    return [(interaction_id, payload) for interaction_id, payload in rows]


def _batches(waiting: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Cut `waiting` so that each batch fits into one request."""
    batch: list[tuple[str, str]] = []
    size_bytes = 0
    for item in waiting:
        item_bytes = len(item[1].encode())
        if batch and size_bytes + item_bytes > MAX_BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(item)
        size_bytes += item_bytes
    yield batch


def _send_batch(client: EverswarmClient, device_id: str, batch: list[tuple[str, str]]) -> dict[str, str]:
    """Send one batch; return the reasons of the items that were turned down, by interaction id."""
    items = [json.loads(payload) for _, payload in batch]
    try:
        answer = client.training_feedback(TrainingFeedback(device_id=device_id, interactions=items, timestamp=now()))
    except (BadRequestError, TooLargeError) as error:
        return _send_halves(client, device_id, batch, error=error)
    return {batch[item.index][0]: item.error for item in answer.rejected if 0 <= item.index < len(batch)}


def _send_halves(
    client: EverswarmClient, device_id: str, batch: list[tuple[str, str]], *, error: EverswarmError
) -> dict[str, str]:
    """Find the items that the server cannot take, so that they do not sink the rest."""
    if len(batch) == 1:
        return {batch[0][0]: str(error)}
    middle = len(batch) // 2
    first = _send_batch(client, device_id, batch[:middle])
    return first | _send_batch(client, device_id, batch[middle:])


def _settle(journal: Path, interaction_ids: list[str], reasons: dict[str, str]) -> None:
    """Write down how a batch ended; the text of what was sent is no longer needed here."""
    moment = now().isoformat()
    with open_journal(journal) as connection:
        for interaction_id in interaction_ids:
            reason = reasons.get(interaction_id)
            connection.execute(
                "UPDATE feedback SET state = ?, reason = ?, changed_at = ?, "
                "payload = CASE WHEN ? IS NULL THEN NULL ELSE payload END WHERE interaction_id = ?",
                ("rejected" if reason else "sent", reason, moment, reason, interaction_id),
            )
