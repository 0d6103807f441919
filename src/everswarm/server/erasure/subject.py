"""Whom an erasure is about: the names under which their rows lie. Deletes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, false, or_, select

from everswarm.schemas.server import Scope
from everswarm.server.auth.principal import Principal
from everswarm.server.auth.tables import keys
from everswarm.server.feedback.reading import identifier_of
from everswarm.server.feedback.tables import feedback, interactions
from everswarm.server.fleet.tables import devices

IDS_A_STATEMENT = 5_000  # SQLite takes 32,766 values


class Subject(NamedTuple):
    """What is to be forgotten."""

    names: frozenset[str]  # whose rows go; none where it is about one interaction
    senders: frozenset[str] = frozenset()  # keys that speak for nobody else: what they sent goes too
    key_ids: frozenset[str] = frozenset()  # of the same keys
    ids: tuple[str, ...] = ()  # of interactions, where it is about these


def of_user(user: str) -> Subject:
    """Return who an application, or a key, calls `user`; interactions keep such a name as an identifier."""
    return Subject(frozenset({user, identifier_of(user)}))


def of_key(principal: Principal) -> Subject:
    """Return who has a key that is no administrator's: what it asked and sent, whatever device it called itself."""
    return Subject(frozenset({principal.user}), frozenset({principal.user}), frozenset({principal.key_id}))


def of_device(connection: Connection, device_id: str) -> Subject:
    """Return a device with the device keys that it enrolled with or sent by: a device key is one device's alone."""
    keys_of_devices = {
        Principal(key_id=row.id, scope=Scope.DEVICE, label="").user: row.id
        for row in connection.execute(select(keys.c.id).where(keys.c.scope == Scope.DEVICE.value))
    }
    enrolled = connection.execute(select(devices.c.key_id).where(devices.c.device_id == device_id)).scalars().all()
    sent = select(interactions.c.sender).where(interactions.c.user == device_id).distinct()
    senders = set(connection.execute(sent).scalars()) & keys_of_devices.keys()
    senders |= {name for name, key_id in keys_of_devices.items() if key_id in enrolled}
    key_ids = frozenset(keys_of_devices[name] for name in senders)
    return Subject(frozenset({device_id, *senders}), frozenset(senders), key_ids)


def of_interactions(connection: Connection, ids: Iterable[str], *, whole_threads: bool) -> Subject:
    """Return interactions with what repeats them: the other half of an escalation, and their conversations.

    Args:
        connection: of the transaction.
        ids: of the interactions, there or not.
        whole_threads: every later turn of a conversation holds the earlier ones, so all of it goes.
    """
    wanted = set(ids)
    for some in in_portions(sorted(wanted)):
        rows = connection.execute(_PLACES.where(interactions.c.id.in_(some))).all()
        wanted |= {row.escalated_to for row in rows if row.escalated_to}
        people = {name for row in rows for name in (row.user, row.sender) if name}
        theirs = or_(interactions.c.user.in_(people), interactions.c.sender.in_(people))
        asked_again = select(interactions.c.id).where(theirs, interactions.c.escalated_to.in_(some))
        wanted |= set(connection.execute(asked_again).scalars())
        threads = {row.thread_id for row in rows if row.thread_id} if whole_threads else set()
        for row in rows:
            if row.thread_id in threads:
                same = (interactions.c.thread_id == row.thread_id, interactions.c.user == row.user)
                wanted |= set(connection.execute(select(interactions.c.id).where(*same)).scalars())
                threads.discard(row.thread_id)
    return Subject(frozenset(), ids=tuple(sorted(wanted)))


def ids_of(connection: Connection, subject: Subject) -> list[str]:
    """Return the ids of all interactions of `subject` that are there."""
    if subject.names:
        return list(connection.execute(select(interactions.c.id).where(_belongs_to(subject))).scalars())
    found: list[str] = []
    for some in in_portions(subject.ids):
        found += connection.execute(select(interactions.c.id).where(interactions.c.id.in_(some))).scalars()
    return found


def touched_by(connection: Connection, subject: Subject, ids: Sequence[str]) -> set[str]:
    """Return the interactions, of whomever, whose frozen copies have words of `subject`, whose interactions are `ids`.

    Those that the subject judged, and those that were preferred over one of theirs: they are frozen with the loser.
    """
    found: set[str] = set()
    if subject.names:
        judged = select(feedback.c.interaction_id).where(feedback.c.user.in_(subject.names))
        found |= set(connection.execute(judged.distinct()).scalars())
    for some in in_portions(ids):
        won = select(feedback.c.interaction_id).where(feedback.c.preferred_over.in_(some))
        found |= set(connection.execute(won).scalars())
    return found


def askers_of(connection: Connection, ids: Sequence[str]) -> set[str] | None:
    """Return under which names the answers to `ids` may be remembered; None where that is not known.

    An application's own name for a person is not stored, only the identifier that was made of it.
    """
    names: set[str] = set()
    for some in in_portions(ids):
        for row in connection.execute(_PLACES.where(interactions.c.id.in_(some))):
            if row.source == "web" and row.sender not in (None, row.user):
                return None
            names |= {row.user, row.sender or row.user}
    return names


def in_portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield `ids` in portions that fit into one statement."""
    for start in range(0, len(ids), IDS_A_STATEMENT):
        yield ids[start : start + IDS_A_STATEMENT]


def _belongs_to(subject: Subject) -> ColumnElement[bool]:
    sent = interactions.c.sender.in_(subject.senders) if subject.senders else false()
    return or_(interactions.c.user.in_(subject.names), sent)


_PLACES = select(
    interactions.c.id,
    interactions.c.user,
    interactions.c.sender,
    interactions.c.source,
    interactions.c.thread_id,
    interactions.c.escalated_to,
)
