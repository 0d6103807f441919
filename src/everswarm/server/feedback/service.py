"""Storing what this server's models answered and what people thought of it, and giving both back folded."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from sqlalchemy import Connection, Row

from everswarm.errors import BadRequestError, ConfigurationError, NotFoundError
from everswarm.identifiers import new_id
from everswarm.schemas.interaction import (
    MAX_TEXT_CHARACTERS,
    FeedbackRequest,
    InteractionView,
    JudgedInteraction,
)
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal
from everswarm.server.database import Database
from everswarm.server.feedback import repository
from everswarm.server.feedback.reading import identifier_of, storable, text_turns
from everswarm.server.feedback.repository import BEST_RATING, SWARM
from everswarm.server.feedback.tables import interactions
from everswarm.server.sealing import KEY_NAME, KEY_VARIABLE

State = Literal["complete", "cut", "failed"]
JUDGEMENTS = ("rating", "liked", "correction", "comment", "judge_score")
MOST_BEATEN = 20  # answers that lost against one
NAME_CHARACTERS = 200  # of a role, a model, an endpoint

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class NewInteraction:
    """One request to a model of this server, and what came of it."""

    user: str  # `Principal.user` of who asked, or the person for whom an application asked
    messages: Sequence[Mapping[str, Any]]  # as in the OpenAI request
    response: str | None
    sender: str | None = None  # `Principal.user` of the application, where `user` is somebody else
    state: State = "complete"
    role: str | None = None
    model: str | None = None
    endpoint: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_seconds: float | None = None
    trace: Mapping[str, Any] | None = None  # how the answer came about
    looked_up: bool = False  # the answer rests on what a tool found
    thread_id: str | None = None  # the conversation that it belongs to
    id: str = field(default_factory=new_id)


def record_interaction(database: Database, interaction: NewInteraction) -> str:
    """Have one call stored within milliseconds, and return its id, which judgements name."""
    row = {
        "id": interaction.id,
        "user": identifier_of(interaction.user),
        "sender": interaction.sender,
        "source": "web",
        "created_at": datetime.now(UTC),
        "role": _name(interaction.role),
        "model": _name(interaction.model),
        "endpoint": _name(interaction.endpoint),
        "messages": text_turns(interaction.messages),
        "response": storable(interaction.response and interaction.response[:MAX_TEXT_CHARACTERS]),
        "state": interaction.state,
        "prompt_tokens": interaction.prompt_tokens,
        "completion_tokens": interaction.completion_tokens,
        "latency_seconds": interaction.latency_seconds,
        "strategy": None if interaction.trace is None else interaction.trace.get("strategy"),
        "looked_up": interaction.looked_up,
        "trace": interaction.trace,
        "thread_id": interaction.thread_id,
    }
    database.write_soon(interactions, row)
    return interaction.id


def record_feedback(database: Database, principal: Principal, request: FeedbackRequest) -> str:
    """Store a judgement and return its id. Only an admin may judge the interactions of others.

    Raises:
        NotFoundError: no such interaction, or not one's own; the two look the same, so that ids do not leak.
        BadRequestError: a vote of an answer against itself.
    """
    named = [request.interaction_id, *([request.preferred_over] if request.preferred_over else [])]
    if request.preferred_over == request.interaction_id:
        raise BadRequestError("preferred_over names the same interaction as interaction_id; a vote needs two answers.")
    row = {
        "id": request.id or new_id(),
        "interaction_id": request.interaction_id,
        "user": principal.user,
        "created_at": datetime.now(UTC),
        "rating": request.rating,
        "liked": request.liked,
        "correction": storable(request.correction),
        "comment": storable(request.comment),
        "preferred_over": request.preferred_over,
        "regenerated": request.regenerated,
        "copied": request.copied,
        "consent": request.consent,
    }
    with database.transaction() as connection:
        if principal.scope is Scope.ADMIN:
            found = repository.known_ids(connection, named)
        else:
            found = repository.owned_ids(connection, named, user=principal.user)
        for interaction_id in named:
            if interaction_id not in found:
                raise NotFoundError(
                    f"There is no interaction {interaction_id!r} of yours. GET /api/interactions lists those that are."
                )
        repository.insert_feedback(connection, [row])
        if request.keep_days is not None:
            repository.keep_at_most(connection, request.interaction_id, days=request.keep_days)
    return str(row["id"])


def recent_interactions(database: Database, principal: Principal, *, limit: int) -> list[InteractionView]:
    """Return the newest interactions, newest first: one's own, or for an admin those of all."""
    user = None if principal.scope is Scope.ADMIN else principal.user
    with database.read() as connection:
        rows = repository.recent_interactions(connection, limit, user=user)
    return [InteractionView(**{name: row._mapping[name] for name in InteractionView.model_fields}) for row in rows]


class AnsweredInteraction(NamedTuple):
    """How an answer of this server came about."""

    id: str
    role: str | None
    model: str | None
    endpoint: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_seconds: float | None
    trace: Mapping[str, Any]


def answered_interaction(database: Database, principal: Principal, interaction_id: str) -> AnsweredInteraction:
    """Return how an answer came about; one's own, or for an admin anybody's.

    Raises:
        NotFoundError: no such interaction, not one's own, or none that this server's models answered.
    """
    user = None if principal.scope is Scope.ADMIN else principal.user
    with database.read() as connection:
        row = repository.answered_interaction(connection, interaction_id, user=user)
    if row is None:
        raise NotFoundError(
            f"There is no interaction {interaction_id!r} of yours that was answered here. GET /api/interactions lists "
            "those that were."
        )
    return AnsweredInteraction(*(row._mapping[name] for name in AnsweredInteraction._fields))


def judged_interactions(connection: Connection) -> Iterator[JudgedInteraction]:
    """Yield the interactions with at least one judgement, by id, as they are stored.

    Of rating, thumb, correction, comment and a judge's score the latest that a person gave counts; the swarm's
    correction stands in where no person gave one, unless the answer is rated 5. Of consent that of the latest judgement
    by who asked counts, or by the application that asked for them, so that it can be withdrawn. Conversations without a
    closing text question (calls of tools) are left out.
    """
    for judged, _ in folded(connection):
        yield judged


def folded(connection: Connection) -> Iterator[tuple[JudgedInteraction, list[Row[Any]]]]:
    """Yield what `judged_interactions` does, each with the rows of `repository.judgements` that it comes from."""
    left_out = 0
    for _, group in groupby(repository.judgements(connection), key=lambda row: row.id):
        rows = list(group)
        try:
            yield _folded(rows), rows
        except ValidationError:
            left_out += 1
    if left_out:
        _log.info("%d judged interactions do not end with a text question and were left out", left_out)


def check_key(database: Database) -> None:
    """Make sure that what is sealed here, and was before, is sealed with one key. The first one is the right one.

    Raises:
        ConfigurationError: its texts were sealed with another key, or that key is gone. No key is made.
    """
    with database.read() as connection:
        sealed = repository.checked_text(connection)
    if sealed is not None and not database.has_key:
        raise ConfigurationError(
            f"The key of this database is gone: {KEY_NAME} is not there, and {KEY_VARIABLE} is not set. Put it back "
            "from your copy; without it what people said cannot be read."
        )
    if sealed is None:
        with database.transaction() as connection:
            repository.keep_checked_text(connection, database.seal.close(b"everswarm"))
            sealed = repository.checked_text(connection)
    database.seal.open(sealed or b"")


def stats(database: Database) -> repository.FeedbackStats:
    """Count interactions and judgements."""
    with database.read() as connection:
        return repository.count_all(connection)


def _folded(rows: list[Row[Any]]) -> JudgedInteraction:
    latest = rows[-1]
    consents = [bool(row.consent) for row in rows if row.may_consent]
    judged = _latest_judgements(row for row in rows if row.author != SWARM)
    if "correction" not in judged and judged.get("rating") != BEST_RATING:
        judged |= _latest_judgements(row for row in rows if row.author == SWARM)
    return JudgedInteraction(
        id=latest.id,
        device_id=latest.user,
        timestamp=latest.created_at,
        messages=latest.messages,
        response=latest.response,
        model=latest.model,
        language=latest.language,
        better_than=_beaten(rows),
        regenerated=any(row.regenerated for row in rows),
        copied=any(row.copied for row in rows),
        consent=bool(consents) and consents[-1],
        **judged,
    )


def _latest_judgements(rows: Iterable[Row[Any]]) -> dict[str, Any]:
    return {name: value for row in rows for name in JUDGEMENTS if (value := row._mapping[name]) is not None}


def _beaten(rows: list[Row[Any]]) -> list[str]:
    """Return the other answers to the same question that lost a vote against this one."""
    beaten = [text for row in rows for text in row.better_than or []]
    beaten += [row.other_response for row in rows if row.other_response and row.other_messages == row.messages]
    return list(dict.fromkeys(text for text in beaten if text != rows[0].response))[:MOST_BEATEN]


@lru_cache(maxsize=1024)  # few roles, models and endpoints answer many chats
def _name(value: str | None) -> str | None:
    return None if value is None else storable(value[:NAME_CHARACTERS])
