"""The statements about threads and their turns, and about the interactions that go with a deleted thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, literal, select, update

from everswarm.server.feedback.tables import feedback, interactions
from everswarm.server.threads.tables import thread_turns, threads


def insert_thread(connection: Connection, row: Mapping[str, Any]) -> None:
    """Add a thread."""
    connection.execute(threads.insert().values(**row))


def count_threads(connection: Connection, user: str) -> int:
    """Return how many threads `user` has."""
    return int(connection.execute(select(func.count()).where(threads.c.user == user)).scalar_one())


def find_thread(connection: Connection, thread_id: str, *, user: str, hold: bool = False) -> Row[Any] | None:
    """Return a thread of `user` with the number of its turns; with `hold` it stays as it is until commit."""
    wanted = _threads_of(user).where(threads.c.id == thread_id)
    return connection.execute(wanted.with_for_update(of=threads) if hold else wanted).one_or_none()


def page_of_threads(connection: Connection, *, user: str, before: datetime | None, limit: int) -> list[Row[Any]]:
    """Return threads, the one with the newest turn first; those whose last turn is older than `before`."""
    wanted = _threads_of(user)
    if before is not None:
        wanted = wanted.where(threads.c.updated_at < before)
    return list(connection.execute(wanted.order_by(threads.c.updated_at.desc(), threads.c.id.desc()).limit(limit)))


def rename_thread(connection: Connection, thread_id: str, *, user: str, title: str) -> bool:
    """Set the title; say whether there is such a thread."""
    wanted = update(threads).where(threads.c.id == thread_id, threads.c.user == user)
    return connection.execute(wanted.values(title=title)).rowcount == 1


def touch_thread(connection: Connection, thread_id: str, *, user: str, title: str | None, now: datetime) -> bool:
    """Note a new turn, and `title` where there is none; nobody else adds turns until commit.

    Says whether there is such a thread.
    """
    wanted = update(threads).where(threads.c.id == thread_id, threads.c.user == user)
    kept = func.coalesce(threads.c.title, literal(title, threads.c.title.type))
    return connection.execute(wanted.values(updated_at=now, title=kept)).rowcount == 1


def keep_summary(connection: Connection, thread_id: str, *, summary: str, upto: int) -> bool:
    """Store a summary that reaches further than the stored one; say whether it does."""
    wanted = update(threads).where(threads.c.id == thread_id, threads.c.summary_upto < upto)
    return connection.execute(wanted.values(summary=summary, summary_upto=upto)).rowcount == 1


def last_position(connection: Connection, thread_id: str) -> int:
    """Return the position of the last turn; 0 where there is none."""
    wanted = select(func.max(thread_turns.c.position)).where(thread_turns.c.thread_id == thread_id)
    return connection.execute(wanted).scalar() or 0


def turns_of(connection: Connection, thread_id: str) -> list[Row[Any]]:
    """Return all turns, in order."""
    wanted = select(thread_turns).where(thread_turns.c.thread_id == thread_id)
    return list(connection.execute(wanted.order_by(thread_turns.c.position)))


def insert_turns(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add turns."""
    connection.execute(thread_turns.insert(), [dict(row) for row in rows])


def delete_thread(connection: Connection, thread_id: str) -> None:
    """Delete a thread with its turns."""
    connection.execute(delete(threads).where(threads.c.id == thread_id))


def delete_empty_thread(connection: Connection, thread_id: str, *, user: str) -> None:
    """Delete a thread in which nothing was said."""
    said = select(thread_turns.c.thread_id).where(thread_turns.c.thread_id == thread_id).exists()
    connection.execute(delete(threads).where(threads.c.id == thread_id, threads.c.user == user, ~said))


def delete_unjudged_interactions(connection: Connection, thread_id: str, *, asker: str, only: str | None = None) -> int:
    """Delete the interactions of `asker` in a thread that no judgement names; return how many that were.

    With `only` that one alone. Those are held first: a judgement that is given at this moment is either seen, or comes
    too late.
    """
    wanted = [interactions.c.thread_id == thread_id, interactions.c.user == asker]
    if only is not None:
        wanted.append(interactions.c.id == only)
    named = select(interactions.c.id).where(*wanted)
    connection.execute(named.order_by(interactions.c.id).with_for_update()).all()
    judged = select(feedback.c.id).where(feedback.c.interaction_id == interactions.c.id).exists()
    preferred = select(feedback.c.preferred_over).where(feedback.c.preferred_over.in_(named))
    return connection.execute(
        delete(interactions).where(*wanted, ~judged, interactions.c.id.not_in(preferred))
    ).rowcount


def _threads_of(user: str) -> Select[Any]:
    turns = select(func.count()).where(thread_turns.c.thread_id == threads.c.id).scalar_subquery()
    return select(threads, turns.label("turns")).where(threads.c.user == user)
