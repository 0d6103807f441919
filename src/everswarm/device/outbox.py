"""Feedback that waits for a line. Each judgement is sent once; what the server turns down is kept with its reason."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from everswarm.client.api import EverswarmClient
from everswarm.device.journal import Interaction, note_signals, now, open_journal, recall
from everswarm.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    NoSpaceError,
    QuotaSpentError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.sync import MAX_INTERACTIONS_A_BATCH, TrainingFeedback

MAX_BATCH_BYTES = 1_000_000  # unpacked: half of what a server takes in one request by default
MAX_WAIT_SECONDS = 60  # of one sync, all waits together, while the server asks for patience
NOTHING_STORED = (QuotaSpentError, NoSpaceError, UnauthorizedError, ForbiddenError)  # after these nothing was taken
JUDGEMENTS = ("rating", "liked", "correction", "comment", "consent")  # one of them is needed
SAID = (*JUDGEMENTS, "language", "keep_days")
UNSAID = {"better_than": [], "regenerated": False, "copied": False}  # left out, which older servers do not know
EXPECTED = {"language": "write a code such as en, de or pt-BR"}  # where the pattern would say less


class OutboxCounts(NamedTuple):
    """How many judgements are in which state."""

    queued: int  # wait for the next sync
    sent: int
    rejected: int


class Sent(NamedTuple):
    """What one emptying of the outbox did."""

    sent: int  # the server has them now, or had them before
    rejected: int


class Waiting(NamedTuple):
    """A judgement on its way."""

    interaction_id: str
    payload: str  # JSON
    is_fresh: bool  # never sent: the server cannot have it


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
    liked: bool | None = None,
    correction: str | None = None,
    comment: str | None = None,
    consent: bool | None = None,
    language: str | None = None,
    keep_days: int | None = None,
) -> JudgedInteraction:
    """Queue a judgement on the last answer, or on `interaction_id`; a second one before a sync adds to the first.

    Args:
        journal: of the device.
        device_id: who judges.
        interaction_id: of an answer that the journal has; None for the last.
        rating: 1 to 5.
        liked: a thumb, up or down.
        correction: what the answer should have been.
        comment: anything else.
        consent: to training; None for what was said before, else no.
        language: BCP 47, such as en or pt-BR.
        keep_days: after the answer was given the server erases it.

    Raises:
        BadRequestError: it says nothing, or a value is out of its range.
        NotFoundError: the device does not remember the interaction.
        ConflictError: the judgement on it was sent already.
    """
    values = (rating, liked, correction, comment, consent, language, keep_days)
    given = {name: value for name, value in zip(SAID, values, strict=True) if value is not None}
    with open_journal(journal) as connection:
        interaction = recall(connection, interaction_id)
        earlier = escalated_consent(connection, interaction.id) | _queued(connection, interaction.id)
        said = {**earlier, **given}
        if not given or said.keys().isdisjoint(JUDGEMENTS):
            raise BadRequestError(
                "Nothing to keep. Give at least one of: --rating 1 to 5, --like, --dislike, --correction, --comment, "
                "--consent."
            )
        judged = _judged(interaction, device_id, said)
        unsaid = {name for name, value in UNSAID.items() if getattr(judged, name) == value}
        connection.execute(
            "INSERT OR REPLACE INTO feedback (interaction_id, state, payload, changed_at) VALUES (?, 'queued', ?, ?)",
            (judged.id, judged.model_dump_json(exclude_none=True, exclude=unsaid), now().isoformat()),
        )
    return judged


def signal(
    journal: Path, interaction_id: str | None = None, *, regenerated: bool = False, copied: bool = False
) -> None:
    """Keep that the last answer, or `interaction_id`, was asked for again or copied.

    It goes out with a judgement on the same answer and never alone: nobody who only copies an answer has said that
    it may leave the device, and the server takes each interaction once, so that a judgement after it came too late.

    Raises:
        NotFoundError: the device does not remember the interaction.
    """
    with open_journal(journal) as connection:
        interaction = recall(connection, interaction_id)
        note_signals(connection, interaction.id, regenerated=regenerated, copied=copied)


def _judged(interaction: Interaction, device_id: str, said: dict[str, Any]) -> JudgedInteraction:
    try:
        return JudgedInteraction(
            id=interaction.id,
            device_id=device_id,
            timestamp=interaction.created_at,  # of this device's clock, which the server mends where it is wrong
            messages=interaction.messages,
            response=interaction.response,
            model=interaction.model,
            regenerated=interaction.regenerated,
            copied=interaction.copied,
            **said,
        )
    except ValidationError as error:
        wrong = [(".".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors()]
        lines = [f"{field}: {EXPECTED.get(field, message)}" for field, message in wrong]
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
    return {name: earlier[name] for name in SAID if name in earlier}


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


def send(journal: Path, device_id: str, *, client: EverswarmClient, wait: Callable[[float], None] = time.sleep) -> Sent:
    """Send what waits, in batches.

    The server knows each interaction by its id, so a batch whose answer was lost may be sent again.

    Args:
        journal: of the device.
        device_id: the sender.
        client: of its server.
        wait: seconds, where the server asks for them; at most `MAX_WAIT_SECONDS` in all.

    Raises:
        QuotaSpentError: the server wants a longer wait; the text says until when.
        EverswarmError: the server is gone, full, or refuses the key. What was not accepted stays in the queue.
    """
    sent = rejected = 0
    patience = _Patience(wait)
    pending: list[list[Waiting]] = []  # halves of a batch that was refused as a whole
    while batch := pending.pop() if pending else _claim(journal):
        try:
            reasons = _send_batch(client, device_id, batch, patience)
        except (BadRequestError, TooLargeError) as error:
            if len(batch) > 1:  # find the items that the server cannot take, so that they do not sink the rest
                middle = len(batch) // 2
                pending += [batch[middle:], batch[:middle]]
                continue
            reasons = {0: str(error)}
        except NOTHING_STORED as error:
            _give_back(journal, [*pending, batch])
            if isinstance(error, NoSpaceError):  # the server's disk, not ours
                raise UnavailableError(f"The server cannot store anything now: {error}") from error
            raise
        _settle(journal, batch, reasons)
        sent += len(batch) - len(reasons)
        rejected += len(reasons)
    return Sent(sent=sent, rejected=rejected)


@dataclass
class _Patience:
    """How long one sync still waits where the server asks for it."""

    wait: Callable[[float], None]
    left_seconds: int = MAX_WAIT_SECONDS

    def spend(self, error: QuotaSpentError) -> None:
        """Wait as long as the server wants; where that is too long, say when to come back.

        Raises:
            QuotaSpentError: it is too long.
        """
        seconds = error.retry_after_seconds or 1
        if seconds > self.left_seconds:
            later = f"{seconds} s" if seconds < 120 else f"{math.ceil(seconds / 60):,} min"
            raise QuotaSpentError(f"{error} Sync again in {later}.", retry_after_seconds=seconds) from error
        self.wait(seconds)
        self.left_seconds -= seconds


def _send_batch(client: EverswarmClient, device_id: str, batch: list[Waiting], patience: _Patience) -> dict[int, str]:
    """Send one batch; return why items were not taken, by their place in it."""
    items = [json.loads(item.payload) for item in batch]
    while True:
        try:
            answer = client.training_feedback(
                TrainingFeedback(device_id=device_id, interactions=items, timestamp=now())
            )
        except QuotaSpentError as error:
            patience.spend(error)
            continue
        reasons = {item.index: item.error for item in answer.rejected}
        reasons |= {item.index: f"The server kept what it had first: {item.error}" for item in answer.conflicts}
        return {index: reason for index, reason in reasons.items() if 0 <= index < len(batch)}


def _claim(journal: Path) -> list[Waiting]:
    """Take the next judgements; from here on they no longer change."""
    with open_journal(journal) as connection:
        rows = connection.execute(
            "SELECT interaction_id, payload, state = 'queued' FROM feedback "
            "WHERE state IN ('queued', 'sending') ORDER BY 1 LIMIT ?",
            (MAX_INTERACTIONS_A_BATCH,),
        )
        batch = first_batch(Waiting(interaction_id, payload, bool(fresh)) for interaction_id, payload, fresh in rows)
        connection.executemany(
            "UPDATE feedback SET state = 'sending', changed_at = ? WHERE interaction_id = ?",
            [(now().isoformat(), item.interaction_id) for item in batch],
        )
    return batch


def first_batch(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Return the first of `waiting`, as many as fit into one request by count and by unpacked size; never none."""
    batch: list[Waiting] = []
    size_bytes = 0
    for item in waiting:
        size_bytes += len(item.payload.encode()) + 1  # and a comma
        if batch and (size_bytes > MAX_BATCH_BYTES or len(batch) == MAX_INTERACTIONS_A_BATCH):
            break
        batch.append(item)
    return batch


def _give_back(journal: Path, batches: list[list[Waiting]]) -> None:
    """Let judgements that the server surely does not have be changed again."""
    with open_journal(journal) as connection:
        connection.executemany(
            "UPDATE feedback SET state = 'queued' WHERE interaction_id = ?",
            [(item.interaction_id,) for batch in batches for item in batch if item.is_fresh],
        )


def _settle(journal: Path, batch: list[Waiting], reasons: dict[int, str]) -> None:
    """Write down how a batch ended; the text of what was sent is no longer needed here."""
    moment = now().isoformat()
    sent = [(moment, item.interaction_id) for index, item in enumerate(batch) if index not in reasons]
    rejected = [(reasons[index], moment, item.interaction_id) for index, item in enumerate(batch) if index in reasons]
    with open_journal(journal) as connection:
        connection.executemany(
            "UPDATE feedback SET state = 'sent', reason = NULL, payload = NULL, changed_at = ? "
            "WHERE interaction_id = ?",
            sent,
        )
        connection.executemany(
            "UPDATE feedback SET state = 'rejected', reason = ?, changed_at = ? WHERE interaction_id = ?", rejected
        )
