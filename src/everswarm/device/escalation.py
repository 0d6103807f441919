"""Asking the swarm what this device has answered: once, when there is a line; its answer is kept in the journal."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from everswarm.client.api import EverswarmClient
from everswarm.device import outbox
from everswarm.device.journal import Interaction, now, open_journal, recall
from everswarm.device.state import DeviceHome
from everswarm.device.trust import refuse_remote
from everswarm.errors import UnavailableError
from everswarm.schemas.escalation import Escalated, Escalation

ANSWER_SECONDS = 180.0  # several models may have to answer, one after the other


@dataclass(frozen=True)
class BetterAnswer:
    """Both answers to one question."""

    id: str  # of this device's interaction
    question: str
    attempt: str
    model: str  # of this device
    response: str  # of the swarm
    answered_by: str | None  # the model of the swarm
    role: str | None
    strategy: str | None
    interaction_id: str  # of the swarm
    consent: bool
    asked_before: bool  # it was in the journal; nobody was asked


def escalate(
    home: Path, interaction_id: str | None = None, *, consent: bool | None = None, max_tokens: int | None = None
) -> BetterAnswer:
    """Ask the server for a better answer than the last one, or than `interaction_id`.

    Args:
        home: of the device.
        interaction_id: of an answer that the journal has.
        consent: to training; None for what was said when it was judged, else no.
        max_tokens: of the answer.

    Raises:
        NotFoundError: the device does not remember the interaction.
        UnavailableError: the server does not answer, or has no quota left; it can be asked again.
        ForbiddenError: the server is not on this machine.
    """
    place = DeviceHome(home.expanduser())
    server = place.load().server
    refuse_remote(server)
    with open_journal(place.journal_path) as connection:
        interaction = recall(connection, interaction_id)
        kept = _kept(connection, interaction)
        if consent is None:
            consent = outbox.queued_consent(connection, interaction.id)
    if kept is not None:
        return kept
    wanted = Escalation(
        id=interaction.id,
        messages=interaction.messages,
        attempt=interaction.response or None,
        model=interaction.model,
        consent=consent,
        max_tokens=max_tokens,
    )
    escalated = _ask(server, place.load_key(), wanted)
    with open_journal(place.journal_path) as connection:
        connection.execute(
            "INSERT OR REPLACE INTO escalations (interaction_id, answered_at, consent, answer) VALUES (?, ?, ?, ?)",
            (interaction.id, now().isoformat(), consent, escalated.model_dump_json()),
        )
        outbox.set_queued_consent(connection, interaction.id, consent=consent)
    return _better_answer(interaction, escalated, consent=consent, asked_before=False)


def _ask(server: str, key: str, wanted: Escalation) -> Escalated:
    try:
        with EverswarmClient(server, key, timeout_seconds=ANSWER_SECONDS) as client:
            return client.escalate(wanted)
    except UnavailableError as error:
        raise type(error)(
            f"{error} Nothing was changed here. Try again later: everswarm device escalate {wanted.id}",
            retry_after_seconds=error.retry_after_seconds or 5,
        ) from error


def _kept(connection: sqlite3.Connection, interaction: Interaction) -> BetterAnswer | None:
    row = connection.execute(
        "SELECT answer, consent FROM escalations WHERE interaction_id = ?", (interaction.id,)
    ).fetchone()
    if row is None:
        return None
    return _better_answer(interaction, Escalated.model_validate_json(row[0]), consent=bool(row[1]), asked_before=True)


def _better_answer(
    interaction: Interaction, escalated: Escalated, *, consent: bool, asked_before: bool
) -> BetterAnswer:
    return BetterAnswer(
        id=interaction.id,
        question=interaction.messages[-1].content,
        attempt=interaction.response,
        model=interaction.model,
        response=escalated.response,
        answered_by=escalated.model,
        role=escalated.role,
        strategy=escalated.strategy,
        interaction_id=escalated.interaction_id,
        consent=consent,
        asked_before=asked_before,
    )
