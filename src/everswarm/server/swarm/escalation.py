"""A device asks the swarm what its own small model has answered. Attempt and better answer are kept as a pair.

Does not know how the swarm answers: that is a function that it is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection, Row

from everswarm.errors import ConflictError, NotFoundError, UnavailableError
from everswarm.schemas.escalation import Escalated, Escalation
from everswarm.schemas.interaction import MAX_TEXT_CHARACTERS, JudgedInteraction, Message
from everswarm.server.database import Database
from everswarm.server.feedback import batches, repository
from everswarm.server.swarm.recording import Asker


class AnsweredEscalation(NamedTuple):
    """What the swarm said. Its interaction is stored, or will be in a moment."""

    interaction_id: str
    response: str
    is_whole: bool  # False where the limit of tokens cut it
    role: str | None = None
    strategy: str | None = None
    model: str | None = None


# of the conversation, in so many tokens at most
AnswerQuestion = Callable[[Sequence[Message], int | None], Awaitable[AnsweredEscalation]]


class Escalations:
    """Answers each escalation once, whoever asks again and how often. One of a process; others may run beside it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._running: dict[tuple[str, str], tuple[Escalation, asyncio.Task[Escalated]]] = {}

    async def escalate(self, escalation: Escalation, *, asker: Asker, answer: AnswerQuestion) -> Escalated:
        """Return the swarm's answer, from the database if it is there; else ask, and store the pair as `asker`'s.

        It is asked to the end also when its reader leaves, so that the device finds the answer when it asks again.

        Raises:
            ConflictError: the id is taken by something else.
            UnavailableError: the swarm said nothing; and whatever `answer` raises. Nothing was stored.
        """
        key = asker.user, escalation.id
        known = self._running.get(key)
        if known is None:
            task = asyncio.create_task(self._escalate(escalation, asker, answer))
            known = self._running[key] = escalation, task
            task.add_done_callback(lambda done: self._forget(key, done))
        running, task = known
        if running != escalation:
            error = ConflictError(
                f"The id {escalation.id!r} is being answered right now, for a request that says something else. "
                "Ask again in some seconds, or with a new id."
            )
            error.retry_after_seconds = 5
            raise error
        return await asyncio.shield(task)

    def _forget(self, key: tuple[str, str], done: asyncio.Task[Escalated]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # who waits for it is told; nobody may

    async def _escalate(self, escalation: Escalation, asker: Asker, answer: AnswerQuestion) -> Escalated:
        found = await run_in_threadpool(self._find, escalation, asker)
        if found is not None:
            return found
        answered = await answer(escalation.messages, escalation.max_tokens)
        if not answered.response.strip():
            raise UnavailableError("The swarm's models gave an empty answer. Nothing was stored; ask again.")
        return await run_in_threadpool(self._store, escalation, asker, answered)

    def _find(self, escalation: Escalation, asker: Asker) -> Escalated | None:
        """Return the answer that is there. A request that is sent again can take consent back, not give it."""
        with self._database.read() as connection:
            row = repository.find_interaction(connection, escalation.id)
            if row is None:
                return None
            record = _record(escalation, row.user)
            _check_same(connection, row, record, asker)
            if row.escalated_to is None:  # its judgement came first
                return None
            answered = _stored(connection, row)
        if not escalation.consent:
            with self._database.transaction() as connection:
                batches.withdraw_consent(connection, record)
        return answered

    def _store(self, escalation: Escalation, asker: Asker, answered: AnsweredEscalation) -> Escalated:
        """Store the pair; where another process was quicker, its answer counts."""
        with self._database.transaction() as connection:
            answer = repository.find_interaction(connection, answered.interaction_id)
            if answer is None:
                raise UnavailableError("The swarm's answer could not be stored, so nothing was. Ask again.")
            lesson = None if answer.looked_up else _lesson(escalation, answered)  # a device cannot look it up
            record = _record(escalation, asker.user, correction=lesson)
            row = batches.store_escalated(connection, record, answer_id=answered.interaction_id, sender=asker.sender)
            if row is not None:
                _check_same(connection, row, record, asker)
                if not repository.mark_escalated(connection, record.id, answer_id=answered.interaction_id):
                    return _stored(connection, repository.find_interaction(connection, record.id) or row)
                batches.add_better_answer(connection, record.model_copy(update={"device_id": row.user}))
        return Escalated(
            id=record.id,
            interaction_id=answered.interaction_id,
            response=answered.response,
            role=answered.role,
            strategy=answered.strategy,
            model=answered.model,
        )


def _record(escalation: Escalation, user: str, *, correction: str | None = None) -> JudgedInteraction:
    return JudgedInteraction(
        id=escalation.id,
        device_id=user,
        timestamp=datetime.now(UTC),
        messages=escalation.messages,
        response=escalation.attempt,
        model=escalation.model,
        correction=correction,
        consent=escalation.consent,
    )


def _lesson(escalation: Escalation, answered: AnsweredEscalation) -> str | None:
    """Return what can be learnt: a whole answer, other than the attempt."""
    is_new = answered.response.strip() != (escalation.attempt or "").strip()
    fits = len(answered.response) <= MAX_TEXT_CHARACTERS
    return answered.response if answered.is_whole and is_new and fits else None


def _check_same(connection: Connection, row: Row[Any], record: JudgedInteraction, asker: Asker) -> None:
    """Refuse an id that is taken, in the same words whoever has it."""
    own = {asker.user, asker.sender or asker.user}
    if not own & {row.user, row.sender} or not batches.is_same_interaction(connection, row, record):
        raise ConflictError(
            f"The id {record.id!r} is taken by an interaction that says something else. "
            "Each question needs an id of its own: send this one with a new id."
        )


def _stored(connection: Connection, row: Row[Any]) -> Escalated:
    answer = repository.find_interaction(connection, row.escalated_to)
    if answer is None or answer.response is None:
        raise NotFoundError(f"The swarm's answer to {row.id!r} was deleted from this server. Ask again with a new id.")
    return Escalated(
        id=row.id,
        interaction_id=answer.id,
        response=answer.response,
        role=answer.role,
        strategy=(answer.trace or {}).get("strategy"),
        model=answer.model,
    )
