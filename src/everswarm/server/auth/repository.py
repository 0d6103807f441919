"""The statements about keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from everswarm.schemas.server import KeyView, Scope
from everswarm.server.auth.tables import keys


def insert_key(connection: Connection, row: dict[str, Any]) -> None:
    """Store one key."""
    connection.execute(keys.insert(), row)


def key_with_hash(connection: Connection, sha256: str) -> Row[str, str, str, str, datetime | None] | None:
    """Return `id, sha256, scope, label, revoked_at` of the key with this hash; one look-up in an index."""
    wanted = select(keys.c.id, keys.c.sha256, keys.c.scope, keys.c.label, keys.c.revoked_at)
    return connection.execute(wanted.where(keys.c.sha256 == sha256)).one_or_none()


def all_keys(connection: Connection) -> list[KeyView]:
    """Return every key, oldest first, without secrets."""
    wanted = select(keys.c.id, keys.c.prefix, keys.c.scope, keys.c.label, keys.c.created_at, keys.c.revoked_at)
    return [KeyView(**row._mapping) for row in connection.execute(wanted.order_by(keys.c.id))]


def has_scope(connection: Connection, scope: Scope) -> bool:
    """Say whether a key with this scope was ever made."""
    return connection.execute(select(keys.c.id).where(keys.c.scope == scope.value).limit(1)).first() is not None


def live_keys_with_scope(connection: Connection, scope: Scope) -> list[str]:
    """Return the ids of the keys with this scope that are not revoked."""
    wanted = select(keys.c.id).where(keys.c.scope == scope.value, keys.c.revoked_at.is_(None))
    return list(connection.execute(wanted).scalars())


def mark_revoked(connection: Connection, key_id: str, *, at: datetime) -> bool:
    """Revoke one key, once: a second time keeps the first moment. Say whether the key exists."""
    if connection.execute(select(keys.c.id).where(keys.c.id == key_id)).first() is None:
        return False
    connection.execute(update(keys).where(keys.c.id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=at))
    return True


def mark_label_revoked(connection: Connection, label: str, *, at: datetime) -> int:
    """Revoke all keys with this label; return how many that were."""
    statement = update(keys).where(keys.c.label == label, keys.c.revoked_at.is_(None)).values(revoked_at=at)
    return connection.execute(statement).rowcount
